"""NumPy: every dtype, order and subclass."""

import pytest

from cases import cases

np = pytest.importorskip("numpy")

_struct = [("a", "<i4"), ("b", ">f8", (2,)), ("c", "U3"), ("d", "M8[s]")]


def _structured(align=False):
    out = np.zeros(700, np.dtype(_struct, align=align))
    out["a"] = np.arange(700)
    out["c"] = "xyz"
    return out


def _masked(**options):
    return np.ma.MaskedArray(np.arange(3000.0), **options)


def _read_only():
    out = np.arange(1000)
    out.flags.writeable = False
    return out


cases(
    **{
        f"dtype_{code}": lambda code=code: np.arange(1500).astype(code)
        for code in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", "G", "?")
    },
    **{
        f"dtype_{code.replace('>', 'big_')}": lambda code=code: np.arange(900).astype(code)
        for code in (">i4", ">f8", ">c16", ">u2")
    },
    longlong=lambda: np.arange(1000).astype("q"),
    ulonglong=lambda: np.arange(10).astype("Q"),
    unicode=lambda: np.array(["grüße", "x", ""] * 400),
    unicode_big=lambda: np.array(["grüße", "x", ""]).astype(">U7"),
    bytes=lambda: np.array([b"ab", b"", b"c"] * 900),
    void=lambda: np.frombuffer(bytes(range(200)) * 8, "V16"),
    empty_strings=lambda: np.array(["", ""]),
    datetime=lambda: np.array(["2020-01-01", "NaT"] * 1000, "M8[ns]"),
    datetime_25s=lambda: np.array([0, 1], "M8[25s]"),
    datetime_big=lambda: np.array(["2020-01-01", "NaT"], ">M8[D]"),
    structured_big_datetime=lambda: np.zeros(5, [("t", ">M8[s]"), ("x", ">f4")]),
    strided_big=lambda: np.arange(20).astype(">i4")[::2],
    dtype_big_datetime=lambda: np.dtype(">M8[D]"),
    timedelta=lambda: np.arange(2000).astype("m8[ms]"),
    structured=_structured,
    structured_aligned=lambda: _structured(True),
    structured_titles=lambda: np.zeros(5, [(("title", "a"), "i4")]),
    structured_offsets=lambda: np.zeros(
        5, {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 1], "itemsize": 12}
    ),
    structured_unicode_names=lambda: np.zeros(3, [("größe", "f4"), ("名", "i2")]),
    structured_nested=lambda: np.ones(100, [("p", [("x", "f4"), ("y", "f4")]), ("m", "i1", (2, 3))]),
    dtype_metadata=lambda: np.zeros(3, np.dtype("i4", metadata={"unit": "m"})),
    objects=lambda: np.array([1, "a", None, [2], 2.5], object),
    strings=lambda: (
        np.array(["a", "long " * 10, ""], np.dtypes.StringDType())
        if hasattr(np.dtypes, "StringDType")
        else pytest.skip("NumPy 1")
    ),
    zero_d=lambda: np.array(5.5),
    zero_size=lambda: np.zeros((0, 3), "f4"),
    one_item=lambda: np.zeros((1, 1, 1)),
    five_dimensions=lambda: np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6),
    fortran=lambda: np.asfortranarray(np.arange(5000.0).reshape(50, 100)),
    fortran_datetime=lambda: np.asfortranarray(np.arange(5000).astype("M8[s]").reshape(50, 100)),
    strided=lambda: np.arange(10_000)[::3],
    reversed=lambda: np.arange(10_000.0)[::-1],
    strided_datetime=lambda: np.arange(10_000).astype("M8[s]")[::2],
    transposed=lambda: np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    broadcast=lambda: np.broadcast_to(np.arange(5), (400, 5)),
    read_only=_read_only,
    masked=lambda: _masked(mask=[True, False, True] * 1000),
    masked_nomask=_masked,
    masked_fill=lambda: _masked(mask=[False, True, False] * 1000, fill_value=-1.0, hard_mask=True),
    masked_structured=lambda: np.ma.MaskedArray(_structured(), mask=False),
    masked_datetime=lambda: np.ma.MaskedArray(np.arange(3000).astype("M8[s]"), mask=[0, 1, 0] * 1000),
    recarray=lambda: np.rec.array(_structured()),
    record_dtype=lambda: _structured().astype(np.dtype((np.record, _struct))),
    matrix=lambda: np.matrix(np.arange(4000.0).reshape(40, 100)),
    scalar_f4=lambda: np.float32(0.1),
    scalar_bool=lambda: np.True_,
    scalar_longlong=lambda: np.longlong(7),
    scalar_str=lambda: np.str_("x"),
    scalar_datetime=lambda: np.datetime64("2020-01-01", "ns"),
    scalar_longdouble=lambda: np.longdouble(1) / 3,
    scalar_void=lambda: _structured()[5],
    scalar_nat=lambda: np.timedelta64("NaT"),
    dtype=lambda: np.dtype(_struct, align=True),
    ufunc=lambda: np.add,
    list_of_small=lambda: [np.arange(n) for n in range(300)],
)
