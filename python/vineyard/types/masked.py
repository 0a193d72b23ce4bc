"""Masked arrays, for those who have imported `numpy.ma`."""

from __future__ import annotations

import numpy as np

from vineyard.pickling import REDUCERS
from vineyard.types.numpy import reduce_masked

__all__: list[str] = []

REDUCERS[np.ma.MaskedArray] = reduce_masked
