"""Memory lives until the last view is gone: after rm, after the volume, until the interpreter ends."""

import gc
import subprocess
import sys
import weakref

import pytest

import vineyard

np = pytest.importorskip("numpy")
N = 200_000


def watch(vol, ref):
    """A got array and a weak reference to the memory below it."""
    array = vol.get(ref)
    base = array
    while not isinstance(base, vineyard._native.Memory):
        base = base.obj if isinstance(base, memoryview) else base.base
    return array, weakref.ref(base)


def test_memory_goes_with_the_last_view(vol):
    array, memory = watch(vol, vol.put(np.arange(N)))
    part = array[10:20]
    del array
    gc.collect()
    assert memory() is not None
    assert part[0] == 10
    del part
    gc.collect()
    assert memory() is None


def test_views_of_other_libraries_hold_the_memory(vol):
    pa = pytest.importorskip("pyarrow")
    array, memory = watch(vol, vol.put(np.arange(N)))
    arrow = pa.array(array)
    del array
    gc.collect()
    assert memory() is not None
    assert arrow[5].as_py() == 5
    del arrow
    gc.collect()
    assert memory() is None


def test_dlpack_consumers_hold_the_memory(vol):
    array, memory = watch(vol, vol.put(np.arange(N)))
    other = np.from_dlpack(array)
    del array
    gc.collect()
    assert memory() is not None
    assert other[7] == 7


def test_values_stay_valid_after_rm_and_overwrite(vol):
    vol["x"] = np.arange(N)
    first = vol["x"]
    vol["x"] = np.zeros(N)
    second = vol["x"]
    assert vol.rm("x")
    assert first[-1] == N - 1
    assert not second.any()


def test_values_stay_valid_after_the_volume_object(root):
    vol = vineyard.open(root)
    vol["x"] = np.arange(N)
    array = vol["x"]
    del vol
    gc.collect()
    assert array.sum() == N * (N - 1) // 2


def test_copies_of_a_frame_do_not_pin_it(vol):
    pd = pytest.importorskip("pandas")
    ref = vol.put(pd.DataFrame({"a": np.arange(float(N))}))
    frame = vol.get(ref)
    base = frame._mgr.blocks[0].values
    while not isinstance(base, vineyard._native.Memory):
        base = base.obj if isinstance(base, memoryview) else base.base
    memory = weakref.ref(base)
    copy = frame.copy()
    del frame, base
    gc.collect()
    assert memory() is None
    assert copy["a"].iloc[-1] == N - 1


def test_a_buffer_cannot_be_freed_under_a_memoryview(vol):
    _, memory = vol._native.memory((vol.put(b"x" * N).id, "raw"), False)
    view = memoryview(memory)
    reference = weakref.ref(memory)
    del memory
    gc.collect()
    assert view[0] == ord("x")
    view.release()
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "keep.append(keep)"])
def test_the_interpreter_ends_with_live_views(root, end):
    code = f"""
import sys, vineyard, numpy as np
vol = vineyard.open({root!r})
vol["x"] = np.arange({N}); vol["y"] = {{"a": [np.arange({N})]}}
keep = [vol["x"], vol["y"], vol, vol.create("z", 1000, "f8")]
class Late:
    def __del__(self): print(int(self.array[-1]))
late = Late(); late.array = vol["x"]
{end}
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(N - 1)


def test_a_draft_that_is_dropped_leaves_nothing_and_its_view_stays_valid(vol):
    draft = vol.create("x", 500_000, "f4")
    array = draft.array
    array[:] = 1
    del draft
    gc.collect()
    assert array.sum() == 500_000
    assert "x" not in vol
    assert vol.names() == []
