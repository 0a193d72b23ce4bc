"""No copy, proven by addresses: the data of what `get` returns lies inside the mapped object."""

import ctypes

import pytest

from vineyard import codec

np = pytest.importorskip("numpy")
LARGE = 100_000  # items: far beyond what is read rather than mapped


@pytest.fixture
def mapped(vol):
    """Gets a value together with the memory that it must be a view of."""

    def get(value):
        ref = vol.put(value)
        kind, memory = vol._native.memory((ref.id, ref.kind), False)
        assert memory.mapped
        return codec.decode(kind, memory), memory

    return get


def inside(memory, address, nbytes):
    return memory.address <= address and address + nbytes <= memory.address + len(memory)


def array_inside(memory, array):
    return inside(memory, array.__array_interface__["data"][0], array.nbytes if array.flags.c_contiguous else 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(LARGE),
        lambda: np.arange(LARGE).astype("M8[s]"),
        lambda: np.asfortranarray(np.ones((100, 1000))),
        lambda: np.zeros(LARGE, [("a", "i4"), ("b", "f8")]),
        lambda: np.array(["abc"] * LARGE),
        lambda: np.arange(LARGE).astype(">f4"),
        lambda: np.arange(LARGE)[::2],
    ],
)
def test_arrays_are_views_alone_and_nested(mapped, make):
    array, memory = mapped(make())
    assert array_inside(memory, array)
    nested, memory = mapped({"a": [make(), {"b": (make(),)}]})
    assert array_inside(memory, nested["a"][0])
    assert array_inside(memory, nested["a"][1]["b"][0])


def test_arrays_in_objects_are_aligned_to_64_bytes(mapped):
    nested, memory = mapped([np.arange(n, dtype="u1") for n in (5000, 4097, 70_000)])
    for array in nested:
        assert array_inside(memory, array)
        assert (array.__array_interface__["data"][0] - memory.address) % 64 == 0
    alone, memory = mapped(np.arange(LARGE))
    assert (alone.__array_interface__["data"][0] - memory.address) % 64 == 0


def test_masked_arrays_share_data_and_mask(mapped):
    array, memory = mapped(np.ma.MaskedArray(np.arange(LARGE), mask=[True, False] * (LARGE // 2)))
    assert array_inside(memory, array._data.view(np.ndarray))
    assert array_inside(memory, array._mask)


def test_an_array_that_comes_twice_is_stored_once(vol, mapped):
    array = np.arange(LARGE)
    assert vol.put([array, array]).nbytes < 1.1 * array.nbytes
    back, memory = mapped([array, array])
    assert back[0] is back[1]


def test_frames_are_one_block_per_dtype_over_the_file(mapped):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({f"c{i}": np.arange(LARGE + 1.0) for i in range(5)} | {"n": np.arange(LARGE + 1), "m": 1})
    back, memory = mapped(frame)
    blocks = back._mgr.blocks
    assert [block.values.dtype.str for block in blocks] == ["<f8", "<i8"]
    for block in blocks:
        assert array_inside(memory, block.values)
        assert block.values.flags.writeable
        assert block.values.strides[0] % 64 == 0


def test_times_and_nullable_integers_in_frames_are_views(mapped):
    pd = pytest.importorskip("pandas")
    times = pd.date_range("2020", periods=LARGE, freq="s")
    frame = pd.DataFrame(
        {"t": times, "z": times.tz_localize("UTC"), "i": pd.array([1, None] * (LARGE // 2), "Int64")}, index=times
    )
    back, memory = mapped(frame)
    assert array_inside(memory, back["t"].array._ndarray)
    assert array_inside(memory, back["z"].array._ndarray)
    assert array_inside(memory, back["i"].array._data)
    assert array_inside(memory, back.index._data._ndarray)


def test_pickled_frames_are_views_too(mapped):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"p": pd.period_range("2020-01", periods=LARGE, freq="h"), "x": np.arange(LARGE) * 1j})
    back, memory = mapped({"frame": frame})
    assert array_inside(memory, back["frame"]["x"].to_numpy())
    series, memory = mapped(pd.Series(np.arange(LARGE)))
    assert array_inside(memory, series.to_numpy())


def arrow_buffers(value):
    import pyarrow as pa

    arrays = [chunk for column in getattr(value, "columns", [value]) for chunk in getattr(column, "chunks", [column])]
    return [b for array in arrays for b in pa.Array.buffers(array) if b is not None and b.size]


def test_arrow_tables_and_arrays_are_views_with_aligned_buffers(mapped):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": range(LARGE), "s": ["x"] * LARGE, "n": pa.array([None, 1] * (LARGE // 2), pa.int8())})
    for value in (table, table.to_batches()[0]):
        back, memory = mapped(value)
        for buffer in arrow_buffers(back):
            assert inside(memory, buffer.address, buffer.size)
            assert (buffer.address - memory.address) % 64 == 0
    for value in (table["a"], table["s"].chunk(0), {"nested": [table]}):
        back, memory = mapped(value)
        back = back["nested"][0] if isinstance(back, dict) else back
        assert all(inside(memory, buffer.address, buffer.size) for buffer in arrow_buffers(back))


def test_string_columns_of_frames_are_views(mapped):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"s": pd.array(["some text", None] * LARGE, "string[pyarrow]")})
    back, memory = mapped(frame)
    for buffer in arrow_buffers(back["s"].array._pa_array):
        assert inside(memory, buffer.address, buffer.size)


def test_a_slice_does_not_store_its_parent(vol):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": range(LARGE), "s": ["text"] * LARGE})
    for value in (table.slice(5, 10), table["s"].slice(5, 10), [table.slice(5, 10)], table["a"].chunk(0).slice(1, 2)):
        assert vol.put(value).nbytes < 10_000


def test_polars_numbers_are_views(mapped):
    pl = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    frame = pl.DataFrame({"a": np.arange(LARGE), "f": np.arange(LARGE) / 3})
    for value, of in ((frame, lambda x: x), ({"f": frame}, lambda x: x["f"])):
        back, memory = mapped(value)
        for name in ("a", "f"):
            assert array_inside(memory, of(back)[name].to_numpy(allow_copy=False))


def test_torch_tensors_are_views_alone_and_in_modules(mapped):
    torch = pytest.importorskip("torch")
    tensor, memory = mapped(torch.arange(LARGE))
    assert inside(memory, tensor.data_ptr(), LARGE * 8)
    module, memory = mapped(torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 300)))
    for parameter in (module[0].weight, module[1].weight):
        assert inside(memory, parameter.data_ptr(), parameter.numel() * 4)


def test_sparse_matrices_are_views(mapped):
    sparse = pytest.importorskip("scipy.sparse")
    matrix, memory = mapped(sparse.random(3000, 3000, 0.05, format="csr", random_state=0))
    for part in (matrix.data, matrix.indices, matrix.indptr):
        assert array_inside(memory, part)


def test_small_values_do_not_become_buffers(vol):
    import vineyard.pickling as pickling

    ref = vol.put([np.arange(10) for _ in range(2000)])
    _, memory = vol._native.memory((ref.id, ref.kind), False)
    assert pickling.FOOTER.unpack(memoryview(memory)[-pickling.FOOTER.size :])[1] == 0


def test_memory_is_a_buffer_of_the_whole_object(vol):
    ref = vol.put(b"0123456789" * 10_000)
    _, memory = vol._native.memory((ref.id, "raw"), False)
    view = memoryview(memory)
    assert (len(memory), view.nbytes, view.readonly) == (100_000, 100_000, False)
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    assert address == memory.address
