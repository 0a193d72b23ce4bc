"""Streams: parts that are read while the producer is still at work."""

import subprocess
import sys
import threading

import pytest

import vineyard


def test_parts_come_in_order_and_end(vol):
    with vol.stream("s") as stream:
        for i in range(5):
            stream.append({"i": i})
    assert list(vol.stream("s")) == [{"i": i} for i in range(5)]
    assert list(vol.stream("s", start=3)) == [{"i": 3}, {"i": 4}]
    assert [entry.kind for entry in vol.ls() if entry.name == "s"] == ["stream"]
    assert vol["s/00000002"] == {"i": 2}


def test_reading_starts_before_writing(vol):
    got = []
    reader = threading.Thread(target=lambda: got.extend(vol.stream("s", timeout=60)))
    reader.start()
    with vol.stream("s") as stream:
        stream.append("a")
        stream.append("b")
    reader.join(60)
    assert got == ["a", "b"]


def test_another_process_produces(vol):
    code = f"""
import vineyard
with vineyard.open({vol.path!r}).stream("s") as stream:
    for i in range(3): stream.append(i)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    assert list(vol.stream("s", timeout=60)) == [0, 1, 2]
    assert process.wait(60) == 0


def test_a_failed_producer_is_told_after_its_last_part(vol):
    with pytest.raises(ZeroDivisionError), vol.stream("s") as stream:
        stream.append(1)
        raise ZeroDivisionError("the reason")
    parts = iter(vol.stream("s"))
    assert next(parts) == 1
    with pytest.raises(vineyard.StoreError, match="the reason"):
        next(parts)


def test_consuming_removes_parts(vol):
    with vol.stream("s") as stream:
        stream.append(b"1")
        stream.append(b"2")
    assert list(vol.stream("s", consume=True)) == [b"1", b"2"]
    assert [n for n in vol.names() if n.startswith("s/")] == []


def test_a_part_that_does_not_come(vol):
    with pytest.raises(TimeoutError):
        list(vol.stream("never", timeout=0.05))
    stream = vol.stream("s")
    stream.append(1)
    parts = iter(vol.stream("s", timeout=0.05))
    assert next(parts) == 1
    with pytest.raises(vineyard.GetTimeout):
        next(parts)


def test_an_ended_stream_takes_no_more(vol):
    stream = vol.stream("s")
    stream.append(1)
    assert stream.end() == 1
    with pytest.raises(ValueError, match="ended"):
        stream.append(2)
    with pytest.raises(vineyard.ObjectExists):
        vol.stream("s").append(3)


def test_tables_stream_without_a_copy(vol):
    pd = pytest.importorskip("pandas")
    with vol.stream("t") as stream:
        for i in range(3):
            stream.append(pd.DataFrame({"a": range(i, i + 10_000)}))
    assert [int(part["a"].iloc[0]) for part in vol.stream("t")] == [0, 1, 2]


def test_a_stream_reads_in_the_mode_that_is_asked_for(vol):
    np = pytest.importorskip("numpy")
    with vol.stream("s") as stream:
        stream.append(np.arange(100_000))
    (mapped,) = vol.stream("s")
    (copied,) = vol.stream("s", mode="copy")
    (fixed,) = vol.stream("s", mode="readonly")
    assert isinstance(copied.base, bytearray)
    assert not isinstance(mapped.base, bytearray)
    assert not fixed.flags.writeable
    with pytest.raises(ValueError, match="'readonly'"):
        vol.stream("s", mode="r")
