"""Categoricals: codes lie in the body, categories are an Arrow dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from vineyard.arrowfile.layout import Body, Column, Layout
from vineyard.arrowfile.schema import Dictionary
from vineyard.types.frames import indexes, values
from vineyard.types.frames.labels import Inexact

Spec = dict[str, Any]


def put(layout: Layout, name: str, array: Any) -> tuple[Column, Spec]:
    """Places a Categorical. Raises Inexact."""
    codes = np.ascontiguousarray(array._codes)
    kind = values.arrow_type(codes.dtype)
    body = Body()
    count = len(array.categories)
    columns, told = indexes.put(body, array.categories, count)
    if len(columns) != 1:
        raise Inexact(type(array.categories))
    number = len(layout.dictionaries)
    nulls, bits = values.validity(layout.body, codes >= 0)
    if nulls:  # some readers check even the codes that are null
        codes = np.maximum(codes, 0)
    at = layout.body.place(codes, codes.nbytes)
    layout.dictionaries.append((number, columns[0], body))
    dictionary = Dictionary(number, kind, bool(array.ordered))
    column = Column(name, columns[0].type, len(codes), nulls, [bits, at], dictionary)
    return column, {
        "kind": "categorical",
        "dtype": codes.dtype.str,
        "at": at[0],
        "nulls": nulls,
        "bits": bits[0],
        "dictionary": number,
        "count": count,
        "categories": told,
        "ordered": array.ordered,
    }


def get(spec: Spec, memory: Any, start: int, starts: list[int], rows: int) -> Any:
    """The Categorical again; `starts`: where the dictionaries' bodies begin."""
    categories = indexes.get(spec["categories"], memory, starts[spec["dictionary"]], spec["count"])
    codes = np.ndarray(rows, spec["dtype"], memory, start + spec["at"])
    if rows and (codes.min() < 0 or codes.max() >= max(len(categories), 1)):
        raise ValueError("a code without a category")
    if spec["nulls"]:
        codes = np.where(values.unpack(memory, start + spec["bits"], rows), codes, codes.dtype.type(-1))
    dtype = pd.CategoricalDtype(categories, spec["ordered"])
    return pd.Categorical.from_codes(codes, dtype=dtype, validate=False)
