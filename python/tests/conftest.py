"""Every test gets a fresh volume in shared memory, or below the temporary directory where there is none."""

import os
import shutil
import tempfile

import pytest

import vineyard

SHARED = "/dev/shm"


@pytest.fixture
def root():
    parent = SHARED if os.access(SHARED, os.W_OK) else None
    path = tempfile.mkdtemp(prefix="vineyard-test-", dir=parent)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def vol(root):
    return vineyard.open(root)
