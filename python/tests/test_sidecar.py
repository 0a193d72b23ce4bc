"""Puts on the sidecar's bill: through its socket, from this process, its forks and its spawns."""

import multiprocessing
import os
import pathlib
import shutil
import subprocess
import time

import pytest

import vineyard

ALLOWANCE = 64 << 20


def binary():
    """The sidecar: named by the environment, or built in this tree."""
    named = os.environ.get("VINEYARD_SIDECAR") or shutil.which("vineyard-sidecar")
    target = pathlib.Path(__file__).parents[2] / "target"
    built = [path for path in target.glob("**/release/vineyard-sidecar") if os.access(path, os.X_OK)]
    return named or (str(built[0]) if built else None)


@pytest.fixture
def socket(root, tmp_path):
    program = binary()
    if program is None:
        pytest.skip("no vineyard-sidecar: build it, or name it in VINEYARD_SIDECAR")
    path = str(tmp_path / "s.sock")
    process = subprocess.Popen([program, "--listen", path, "--volume", root, "--allowance", str(ALLOWANCE)])
    until = time.monotonic() + 60
    while not os.path.exists(path) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    yield path
    # On SIGTERM it would wait for its clients, which a failed test keeps alive.
    process.kill()
    process.wait(60)


def put_in_child(vol):
    for i in range(300):
        vol[f"child/{os.getpid()}/{i}"] = {"i": i}
    return vol.put(b"x" * (3 << 20), f"large/{os.getpid()}").get()[:1]


def test_small_and_large_puts_are_billed(root, socket):
    vol = vineyard.Volume(root, socket)
    assert vol._native.billed
    for i in range(500):
        vol[f"small/{i}"] = i
    vol["large"] = b"x" * (5 << 20)
    with vol.create("made", 1 << 20) as memory:
        memory[:5] = b"hello"
    with vol.open("grown", "wb") as file:
        for _ in range(5):
            file.write(b"y" * 700_000)
    assert [vol[f"small/{i}"] for i in range(500)] == list(range(500))
    assert len(vol["large"]) == 5 << 20
    assert vol["made"][:5] == b"hello"
    assert len(vol["grown"]) == 3_500_000


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_have_connections_of_their_own(root, socket, method):
    vol = vineyard.Volume(root, socket)
    for i in range(50):
        vol[f"before/{i}"] = i
    context = multiprocessing.get_context(method)
    with context.Pool(3) as pool:
        assert pool.map(put_in_child, [vol] * 3) == [b"x"] * 3
    for i in range(50):
        vol[f"after/{i}"] = i
    assert len(vol.names("child/")) == 900
    assert [vol[name] for name in vol.names("after/")]


def test_a_used_up_allowance_is_told_and_leaves_nothing(root, socket):
    vol = vineyard.Volume(root, socket)
    with pytest.raises(vineyard.QuotaExceeded, match="annotation") as caught:
        vol["large"] = b"x" * (2 * ALLOWANCE)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.asked > caught.value.free
    assert caught.value.limit == ALLOWANCE
    assert vol.names() == []
    vol["fits"] = b"x" * (ALLOWANCE // 4)


def test_the_environment_names_the_socket(root, socket, monkeypatch):
    monkeypatch.setenv("VINEYARD_VOLUME", root)
    monkeypatch.setenv("VINEYARD_SOCKET", socket)
    vol = vineyard.open()
    assert vol._native.billed
    assert vol.address() == (root, socket)
    vol["x"] = 1
    monkeypatch.delenv("VINEYARD_SOCKET")
    assert not vineyard.open()._native.billed


def test_reading_needs_no_sidecar(root, socket):
    vineyard.Volume(root, socket)["x"] = {"a": 1}
    assert vineyard.open(root)["x"] == {"a": 1}
