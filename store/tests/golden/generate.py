"""Writes golden/v1/: a volume of format version 1, made from docs/design/volume.md alone, without our code.

    python -m venv v && v/bin/pip install numpy pyarrow safetensors && v/bin/python generate.py

`tree.txt` lists the tree (git keeps neither modes nor empty directories), `files/` holds the contents, `expected.txt` says
what each name must give. Run it again only for a new version of the format, into a new directory: what is here must be
readable for ever.
"""

import io
import json
import pickle
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

OUT = Path(__file__).parent / "v1"
DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
RANDOM = random.Random(1)

tree: list[str] = []
expected: list[str] = []


def new_id() -> str:
    bits = RANDOM.getrandbits(128)
    return "".join(DIGITS[bits >> 5 * i & 31] for i in reversed(range(26)))


def file(path: str, mode: str, content: bytes) -> None:
    source = path.replace("/", "_")
    (OUT / "files" / source).write_bytes(content)
    tree.append(f"file {path} {mode} {source}")


def obj(kind: str, content: bytes) -> str:
    name = f"{new_id()}.{kind}"
    file(f".vineyard/objects/{name}", "0444", content)
    return name


def name(path: str, target: str) -> None:
    tree.append(f"link {path} {'../' * path.count('/')}.vineyard/objects/{target}")


def expect(path: str, kind: str, content: bytes) -> None:
    expected.append(f"{path} {kind} {len(content)} {zlib.crc32(content):08x}")


def named(path: str, kind: str, content: bytes) -> str:
    target = obj(kind, content)
    name(path, target)
    expect(path, kind, content)
    return target


def pad(content: bytes) -> bytes:
    return content + bytes(-len(content) % 64)


def pickled(value: object, meta: dict, read_only: bool = False) -> bytes:
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    body, table = stream, b""
    for buffer in buffers:
        body = pad(body)
        raw = buffer.raw()
        table += struct.pack("<QQ", len(body), raw.nbytes)
        body += raw
    text = json.dumps(meta).encode()
    crc = zlib.crc32(table + text)
    footer = struct.pack("<QIIQII", len(body), len(buffers), len(text), len(stream), int(read_only), crc)
    return body + table + text + footer + b"VYPICKL1"


def pack(members: list[tuple[str, str, bytes]]) -> bytes:
    body, table, keys, kinds = b"", b"", b"", []
    for key, kind, content in sorted(members, key=lambda m: m[0].encode()):
        if kind not in kinds:
            kinds.append(kind)
        table += struct.pack("<QQIHH", len(body), len(content), len(keys), len(key.encode()), kinds.index(kind))
        keys += key.encode()
        body = pad(body + content)
    tail = table + keys + b"".join(k.encode().ljust(16, b"\0") for k in kinds)
    footer = struct.pack("<QQQII", len(body), len(members), len(keys), len(kinds), zlib.crc32(tail))
    return body + tail + footer + b"VYPACK01"


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def arrow(table: pa.Table) -> bytes:
    """An IPC file whose body happens to lie at a multiple of 64: pyarrow aligns to 8, so the schema's metadata is padded."""
    for filler in range(64):
        padded = table.replace_schema_metadata({"filler": "x" * filler})
        out = io.BytesIO()
        with pa.ipc.new_file(out, padded.schema) as writer:
            writer.write_table(padded)
        content = out.getvalue()
        # The record batch follows the schema; both are: ffffffff, length of the metadata, metadata.
        at = 8 + 8 + struct.unpack_from("<i", content, 12)[0]
        body = at + 8 + struct.unpack_from("<i", content, at + 4)[0]
        if body % 64 == 0:
            return content
    raise AssertionError("no padding helps")


def main() -> None:
    (OUT / "files").mkdir(parents=True)
    for directory in ["", "/objects", "/trash", "/tmp", "/ttl", "/links"]:
        tree.append(f"dir .vineyard{directory}")
    file(".vineyard/format", "0444", b"vineyard-volume 1\n")
    named("empty", "raw", b"")
    named("raw", "raw", b"\x93NUMPY is what this starts with, and it is raw")
    named("r\u00e9sum\u00e9.txt", "text", "caf\u00e9 \U0001f347".encode())
    named("unknown", "custom1", b"bytes of a kind that nobody knows")
    for directory in ["run", "run/7"]:
        tree.append(f"dir {directory}")
    named("run/7/array", "npy", npy(np.arange(6, dtype=">f4").reshape(2, 3)))
    named("run/7/table", "arrow", arrow(pa.table({"a": [1, 2, None], "b": ["x", "", "zz"]})))
    named("run/7/tensors", "safetensors", save({"w": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)}))
    value = {"a": bytearray(b"one"), "b": np.arange(100)}
    named("run/7/pickle", "pickle", pickled(value, {"type": "dict", "by": {"python": "3"}}))
    named("run/plain.pickle", "pickle", pickle.dumps([1, 2, 3], protocol=4))
    members = [("zoe", "text", b"z"), ("alice", "raw", b"a" * 100), ("deep/key", "npy", npy(np.zeros(2)))]
    packed = pack(members)
    named("features", "pack", packed)
    for key, kind, content in members:
        expect(f"features/{key}", kind, content)
    # A stream with two parts.
    tree.append("dir scores")
    file("scores/.stream", "0644", b"")
    named("scores/00000000", "raw", b"part 0")
    named("scores/00000001", "raw", b"part 1")
    file("scores/.end", "0444", b'{"parts": 2}')
    # An object with two names and a time to live.
    shared = named("shared", "raw", b"shared")
    name("also", shared)
    expect("also", "raw", b"shared")
    links = f".vineyard/links/{shared[:26]}"
    tree.append(f"dir {links}")
    tree.append(f"link {links}/{new_id()} shared")
    tree.append(f"link {links}/{new_id()} also")
    tree.append(f"link .vineyard/ttl/000000000001.{shared} shared")
    # An unnamed object, and one in the trash.
    obj("raw", b"unnamed")
    file(f".vineyard/trash/{new_id()}.raw", "0444", b"trash")
    file("plain.csv", "0644", b"a,b\n1,2\n")
    expect("plain.csv", "text", b"a,b\n1,2\n")
    (OUT / "tree.txt").write_text("\n".join(tree) + "\n")
    (OUT / "expected.txt").write_text("\n".join(expected) + "\n")


main()
