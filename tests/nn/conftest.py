"""The layers of these tests are made on the backend under test."""

import pytest


@pytest.fixture(autouse=True)
def _layers_are_made_on_the_backend_under_test(default_backend: None) -> None: ...
