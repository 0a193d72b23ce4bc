"""Exact types back, always: every case alone, nested, and read-only or copied."""

import importlib
import pathlib

import pytest
from cases import CASES
from same import assert_same

_UNAVAILABLE = []
for _path in sorted((pathlib.Path(__file__).parent / "cases").glob("[a-z]*.py")):
    try:
        importlib.import_module(f"cases.{_path.stem}")
    except pytest.skip.Exception as _error:
        _UNAVAILABLE.append((_path.stem, str(_error)))


@pytest.mark.parametrize(("library", "why"), _UNAVAILABLE)
def test_library_is_missing(library, why):
    pytest.skip(f"{library}: {why}")


@pytest.mark.parametrize("name", CASES)
def test_comes_back_exactly(vol, name):
    value = CASES[name]()
    assert_same(value, vol.get(vol.put(value)))
    vol["x"] = value
    assert_same(value, vol["x"])


@pytest.mark.parametrize("name", CASES)
def test_comes_back_exactly_when_nested(vol, name):
    value = CASES[name]()
    nested = {"first": [value, 1], "again": (value,)}
    back = vol.get(vol.put(nested))
    assert_same(nested, back)
    if not isinstance(value, (int, float, complex)):  # pickle does not remember numbers
        assert back["first"][0] is back["again"][0], "shared references stay shared"


@pytest.mark.parametrize("mode", ["readonly", "copy"])
@pytest.mark.parametrize("name", CASES)
def test_comes_back_exactly_in_other_modes(vol, name, mode):
    value = CASES[name]()
    assert_same(value, vol.get(vol.put(value), mode=mode))


@pytest.mark.parametrize("name", CASES)
def test_comes_back_exactly_from_a_pack(vol, name):
    value = CASES[name]()
    vol.put_many({"a": 1, "b": value}, "pack")
    assert_same(value, vol["pack/b"])
