"""Arrow IPC files with bodies where we want them: what pyarrow's writer cannot do (it aligns to 8 and packs columns).

A get of a DataFrame is one strided NumPy block when all columns of a dtype lie at one constant stride, so the
metadata is written here, without pyarrow. Format: https://arrow.apache.org/docs/format/Columnar.html
"""

from vineyard.arrowfile.layout import Column, Layout
from vineyard.arrowfile.read import footer_metadata
from vineyard.arrowfile.realign import realign
from vineyard.arrowfile.schema import Type

__all__ = ["Column", "Layout", "Type", "footer_metadata", "realign"]
