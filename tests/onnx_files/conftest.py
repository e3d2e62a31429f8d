"""Networks are made on the backend under test; without the package onnx there are none."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("onnx") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _networks_are_made_on_the_backend_under_test(default_backend: None) -> None: ...
