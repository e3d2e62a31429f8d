"""`pytest --backend NAME` (repeatable) picks what is under test; numpy is the default."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", action="append", metavar="NAME", help="a backend to test; may be repeated (default: numpy)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", metafunc.config.getoption("--backend") or ["numpy"], scope="session")
