"""Prints the milliseconds that a fresh process needs to open, map and sum a file: no store can be faster."""

import mmap
import os
import sys
import time

import numpy as np

np.ones(8).sum()
start = time.perf_counter()
file = os.open(sys.argv[1], os.O_RDONLY)
pages = mmap.mmap(file, os.fstat(file).st_size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
total = float(np.frombuffer(pages, dtype=np.float64).sum())
print((time.perf_counter() - start) * 1e3)
