"""Fork, spawn, threads, pools: the volume works on both sides of all of them."""

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

import vineyard

np = pytest.importorskip("numpy")
N = 100_000


def total(ref):
    return float(ref.get().sum())


def total_of(place):
    root, name = place
    return float(vineyard.open(root)[name].sum())


def put_one(place):
    vol, i = place
    vol[f"part/{i}"] = np.full(N, i)
    return os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_refs_and_volumes_travel_to_other_processes(vol, method):
    ref = vol.put(np.arange(N), "x")
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(total, [ref] * 4) == [float(np.arange(N).sum())] * 4
        assert pool.map(total_of, [(vol.path, "x")] * 2) == [float(np.arange(N).sum())] * 2
        pids = pool.map(put_one, [(vol, i) for i in range(8)])
    assert os.getpid() not in pids
    assert [int(vol[f"part/{i}"][-1]) for i in range(8)] == list(range(8))


def test_a_forked_child_writes_privately_and_the_parent_goes_on(vol):
    vol["x"] = np.arange(N)
    array = vol["x"]
    array[0] = 5
    pid = os.fork()
    if pid == 0:
        try:
            array[:] = -1
            vol["child"] = array
            os._exit(0 if vol["x"][1] == 1 else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert array[0] == 5
    assert array[1] == 1
    assert vol["child"][0] == -1
    vol["after"] = 1


def test_a_draft_survives_a_fork_and_children_cannot_change_the_object(vol):
    with vol.create("x", N, "i8") as array:
        array[:] = 7
        go, started = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(go[0], 1)
            array[:] = -1
            os.write(started[1], b"x")
            os._exit(0)
    os.write(go[1], b"x")
    os.read(started[0], 1)
    os.waitpid(pid, 0)
    assert (vol["x"] == 7).all()
    assert (array == 7).all()


def test_threads_put_and_get_at_once(vol):
    def work(i):
        value = np.full(N + i, i)
        for round_number in range(5):
            vol[f"t/{i}"] = value
            assert (vol[f"t/{i}"] == i).all()
            vol[f"small/{i}/{round_number}"] = {"i": i}
        return i

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == list(range(16))
    assert len(vol.names("small/")) == 80


def test_the_gil_is_released_while_bytes_move(vol):
    """While one thread puts, another one makes progress: more steps than it could take between two puts."""
    big = np.ones(64 << 20, "u1")
    steps = []
    stop = threading.Event()

    def count():
        while not stop.is_set():
            steps.append(time.perf_counter_ns())
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    inside = 0
    for _ in range(5):
        begin = time.perf_counter_ns()
        ref = vol.put(big)
        end = time.perf_counter_ns()
        inside += sum(begin < at < end for at in steps)
        ref.rm()
        steps.clear()
    stop.set()
    thread.join()
    assert inside > 0


def test_waiting_releases_the_gil_and_ends_when_the_name_appears(vol):
    def later():
        time.sleep(0.2)
        vol["late"] = 42

    thread = threading.Thread(target=later)
    thread.start()
    assert vol.get("late", timeout=60) == 42
    thread.join()


def test_waiting_can_be_interrupted(root):
    wait = f"vineyard.open({root!r}).wait('never')"
    code = f"import vineyard\ntry:\n    {wait}\nexcept KeyboardInterrupt:\n    print('interrupted')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        # Past its imports the process sleeps.
        while time.monotonic() < until:
            with open(
                f"/proc/{process.pid}/wchan" if os.path.exists(f"/proc/{process.pid}/wchan") else "/dev/null"
            ) as f:
                if f.read():
                    break
            time.sleep(0.1)
        time.sleep(2)
        process.send_signal(2)
        assert process.communicate(timeout=30)[0].strip() == "interrupted"
    finally:
        process.kill()
        process.wait()


def test_a_process_of_its_own_puts_and_this_one_gets(vol):
    code = f"import vineyard, numpy as np; vineyard.open({vol.path!r})['x'] = {{'a': np.arange(5)}}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert vol["x"]["a"].tolist() == [0, 1, 2, 3, 4]


class Squares:
    def __init__(self, ref):
        self.ref = ref
        self.values = None

    def __getstate__(self):
        return {"ref": self.ref, "values": None}

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if self.values is None:
            self.values = self.ref.get()
        return self.values[i] ** 2


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(vol, context):
    torch = pytest.importorskip("torch")
    data = Squares(vol.put(torch.arange(64.0)))
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context=context)
    assert torch.cat(list(loader)).tolist() == [float(i * i) for i in range(64)]


SCRIPT = """
import abc, enum, sys, typing, numpy, vineyard
class Colour(enum.Enum):
    RED = 1
class Shape(abc.ABC):
    def area(self): return 7
class Meta(type): pass
class Made(metaclass=Meta): pass
T = typing.TypeVar("T")
vol = vineyard.open(sys.argv[1])
vol["enum"] = {"colour": Colour.RED, "x": numpy.zeros(3000)}
vol["abc"] = Shape()
vol["meta"] = Made()
vol["class"] = Colour
vol["variable"] = T
"""


def test_classes_that_a_script_defines_reach_other_scripts(vol):
    pytest.importorskip("cloudpickle")
    subprocess.run([sys.executable, "-c", SCRIPT, vol.path], check=True, timeout=60)
    assert vol["enum"]["colour"].name == "RED"
    assert vol["abc"].area() == 7
    assert type(vol["meta"]).__name__ == "Made"
    assert vol["class"].RED.value == 1
    assert vol["variable"].__name__ == "T"


FIRST = """
import sys, threading, numpy, vineyard
sys.setswitchinterval(1e-6)
vol = vineyard.open(sys.argv[1])
barrier = threading.Barrier(8)
failed = []
def put(i):
    barrier.wait()
    try:
        vol[f"first/{i}"] = [i, numpy.arange(3)]
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
"""


def test_the_first_puts_of_a_process_may_come_from_many_threads(vol):
    for _ in range(3):
        subprocess.run([sys.executable, "-c", FIRST, vol.path], check=True, timeout=60)
    assert len(vol) == 8


FORKED = """
import os, signal, sys, threading, time, types, vineyard
from vineyard import codec
sys.path.insert(0, sys.argv[2])
sys.modules["slow"] = types.ModuleType("slow")
codec._waiting["slow"] = "slow_adapter"
vol = vineyard.open(sys.argv[1])
thread = threading.Thread(target=lambda: vol.put([1], "parent"))
thread.start()
while "slow_adapter" not in sys.modules:
    time.sleep(0.01)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    vol.put([2], "child")
    os._exit(0)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_during_the_first_put_of_another_thread(vol, tmp_path):
    (tmp_path / "slow_adapter.py").write_text("import time; time.sleep(1)")
    subprocess.run([sys.executable, "-c", FORKED, vol.path, str(tmp_path)], check=True, timeout=60)
    assert (vol["parent"], vol["child"]) == ([1], [2])
