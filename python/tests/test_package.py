"""The package itself: defaults, registration, aliases, laziness."""

import os
import subprocess
import sys

import pytest

import vineyard
from vineyard import default


def run(code, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VINEYARD_")}
    return subprocess.run([sys.executable, "-c", code], env=clean | env, capture_output=True, text=True, timeout=120)


def test_importing_and_putting_imports_no_library(root):
    code = """
import sys, vineyard
vol = vineyard.open()
vol["x"] = {"a": [1, "b", b"c"]}; vol["t"] = "text"; vol["b"] = b"bytes"; assert vol["x"] == {"a": [1, "b", b"c"]}
vol.ls(); vol.stat("x"); repr(vol); vol.rm(prefix="")
print(sorted(set(sys.modules) & {"numpy", "pandas", "pyarrow", "polars", "torch", "cloudpickle", "scipy"}))
"""
    done = run(code, VINEYARD_VOLUME=root)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_library_that_is_imported_later_is_seen(vol):
    code = f"""
import vineyard
vol = vineyard.open({vol.path!r}); vol["x"] = 1
import numpy as np
print(vol.put(np.arange(3)).kind)
"""
    assert run(code).stdout.strip() == "npy"


def test_an_array_is_got_by_a_process_that_did_not_import_numpy(vol):
    np = pytest.importorskip("numpy")
    vol["x"] = np.arange(3)
    assert (
        run(f"import vineyard; print(type(vineyard.open({vol.path!r})['x']))").stdout.strip()
        == "<class 'numpy.ndarray'>"
    )


def test_the_environment_names_the_volume(root):
    done = run("import vineyard; vol = vineyard.open(); vol['x'] = 1; print(vol.path)", VINEYARD_VOLUME=root)
    assert done.stdout.strip() == root
    assert vineyard.open(root)["x"] == 1


def test_an_argument_wins_over_the_environment(root, monkeypatch):
    monkeypatch.setenv(default.VOLUME, "/nowhere")
    monkeypatch.setenv(default.SOCKET, "/run/some.sock")
    assert default.place(root) == (root, "/run/some.sock")
    monkeypatch.delenv(default.SOCKET)
    assert default.place(root) == (root, None)
    assert default.place(None) == ("/nowhere", None)


def test_the_embedded_default_is_this_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv(default.VOLUME, raising=False)
    monkeypatch.setattr(default, "_SHARED_MEMORY", str(tmp_path))
    path, socket = default.place(None)
    assert (path, socket) == (str(tmp_path / f"vineyard-{os.getuid()}"), None)
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert default.place(None) == (path, None)


def test_without_shared_memory_the_default_warns_once(monkeypatch, tmp_path):
    monkeypatch.delenv(default.VOLUME, raising=False)
    monkeypatch.setattr(default, "_SHARED_MEMORY", "/nowhere")
    monkeypatch.setattr(default.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.warns(RuntimeWarning, match="slow") as caught:
        default.place(None)
    assert len(caught) == 1


def test_a_foreign_default_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv(default.VOLUME, raising=False)
    monkeypatch.setattr(default, "_SHARED_MEMORY", str(tmp_path))
    (tmp_path / f"vineyard-{os.getuid()}").symlink_to("/tmp")
    with pytest.raises(vineyard.ConnectionFailed, match="remove it"):
        default.place(None)


def test_a_missing_sidecar_is_told(root):
    with pytest.raises(ConnectionError, match="sidecar"):
        vineyard.Volume(root, f"{root}/no.sock")


def test_the_archived_distribution_is_refused(tmp_path):
    info = tmp_path / "vineyard-0.24.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vineyard\nVersion: 0.24.2\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("import vineyard", PYTHONPATH=path)
    assert done.returncode == 1
    assert "pip uninstall vineyard" in done.stderr


class Image:
    """Not picklable, to prove that the registration is used."""

    def __init__(self, pixels, name):
        self.pixels, self.name = pixels, name

    def __reduce__(self):
        raise TypeError("no")


def test_user_types_register_also_nested_and_without_a_copy(vol):
    np = pytest.importorskip("numpy")
    image = Image(np.arange(100_000), "a")
    with pytest.raises(vineyard.SerializationError, match="register"):
        vol.put(image)
    vineyard.register(Image, lambda i: (i.pixels, i.name), lambda told: Image(*told))
    try:
        for value, of in ((image, lambda x: x), ({"i": [image]}, lambda x: x["i"][0])):
            ref = vol.put(value)
            kind, memory = vol._native.memory((ref.id, ref.kind), False)
            back = of(vineyard.codec.decode(kind, memory))
            assert type(back) is Image
            assert back.name == "a"
            address = back.pixels.__array_interface__["data"][0]
            assert memory.address <= address < memory.address + len(memory)
    finally:
        vineyard.unregister(Image)
    with pytest.raises(vineyard.DeserializationError, match="register"):
        vol.get(ref)


def test_lambdas_and_main_classes_travel(vol):
    pytest.importorskip("cloudpickle")
    factor = 3
    vol["f"] = lambda x: x * factor
    assert vol["f"](5) == 15
    code = f"""
import vineyard
class Local:
    def hello(self): return "hello"
vineyard.open({vol.path!r})["o"] = Local()
"""
    assert run(code).stderr == ""
    assert run(f"import vineyard; print(vineyard.open({vol.path!r})['o'].hello())").stdout.strip() == "hello"


def test_the_reference_clients_calls(vol):
    with vineyard.connect(vol.path) as client:
        ref = client.put([1, 2], persist=True)
        assert client.get(ref) == [1, 2]
        client.put_name(ref, "n")
        assert client.get_name("n") == ref
        assert client.get(name="n") == [1, 2]
        assert client.get_name("n", wait=True, timeout=1) == ref
        assert client.list_names() == {"n": ref}
        assert client.list_names("^n$", regex=True) == {"n": ref}
        client.persist(ref)
        assert client.exists(ref)
        assert client.status["memory_usage"] > 0
        named = client.put("x", name="m")
        assert client.get(client.get_name("m")) == "x"
        assert bytes(client.get_blob(named)) == b"x"
        blob = client.create_blob(3)
        blob.array[:] = b"abc"
        assert client.get(blob.seal()) == b"abc"
        client.delete([named])
        assert not client.exists("m")
        client.drop_name("n")
        assert not client.exists("n")
        client["again"] = 5
        client.clear()
        assert client.names() == []
    with pytest.warns(UserWarning, match="directory"):
        vineyard.connect(vol.path, host="127.0.0.1", port=9600)


def test_csi_write_and_read(vol):
    vineyard.csi.write({"a": 1}, os.path.join(vol.path, "runs", "x"))
    assert vineyard.csi.read(os.path.join(vol.path, "runs", "x")) == {"a": 1}
    assert vol["runs/x"] == {"a": 1}
    with pytest.raises(vineyard.ConnectionFailed):
        vineyard.csi.read("/nowhere/at/all")


def test_module_level_put_and_get(root):
    code = "import vineyard; r = vineyard.put(5, 'x'); print(vineyard.get('x') + vineyard.get(r))"
    assert run(code, VINEYARD_VOLUME=root).stdout.strip() == "10"


def test_another_volume_at_the_same_path_is_noticed(root):
    path = os.path.join(root, "sub")
    ref = vineyard.attach(path).put(1, "x")
    assert vineyard.attach(path) is vineyard.attach(path)
    os.rename(path, os.path.join(root, "gone"))
    assert "x" not in vineyard.attach(path)
    assert ref.get() == 1


def test_it_is_typed():
    assert os.path.exists(os.path.join(os.path.dirname(vineyard.__file__), "py.typed"))
    assert vineyard.__version__
