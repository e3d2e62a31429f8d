"""`gpucnn bench` settles the number of threads for its process, which here is that of all tests."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    with mock.patch.dict(os.environ), threadpool_limits(1, "blas"):
        yield
