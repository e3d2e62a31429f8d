"""Which backend new tensors get: the environment, a scope, a name; and what a misspelt one is told."""

import os
import subprocess
import sys
import threading

import pytest

import gpucnn
from gpucnn.backends.numpy_backend import NumpyBackend


class Abacus(NumpyBackend):
    name = "abacus"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "GPUCNN_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )


PRINT_NAME = "print(gpucnn.zeros(2).backend.name)"


def test_backend_is_chosen_by_the_environment_before_the_import() -> None:
    result = run(f"import gpucnn; {PRINT_NAME}", GPUCNN_BACKEND="numpy")
    assert (result.returncode, result.stdout) == (0, "numpy\n"), result.stderr


def test_backend_is_chosen_by_the_environment_after_the_import() -> None:
    code = f"import os, gpucnn; os.environ['GPUCNN_BACKEND'] = 'numpy'; {PRINT_NAME}"
    result = run(code, GPUCNN_BACKEND="nonsense")
    assert (result.returncode, result.stdout) == (0, "numpy\n"), result.stderr


@pytest.mark.parametrize("environment", [{"GPUCNN_BACKEND": "nonsense"}, {"GPUCNN_BACKEND": "Numpy"}])
def test_misspelt_backend_is_an_error_at_the_first_tensor_that_lists_the_choices(environment: dict[str, str]) -> None:
    result = run(f"import gpucnn; print('imported'); {PRINT_NAME}", **environment)
    assert result.stdout == "imported\n"
    wrong = environment["GPUCNN_BACKEND"]
    assert f"ValueError: GPUCNN_BACKEND is {wrong!r}, but the backends are auto, numpy" in result.stderr


def test_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_BACKEND", "numpy")
    assert gpucnn.get_backend().name == "numpy"
    monkeypatch.setenv("GPUCNN_BACKEND", "nonsense")
    with pytest.raises(ValueError, match=r"GPUCNN_BACKEND is 'nonsense'.*auto, numpy"):
        gpucnn.get_backend()
    for unset in ("", "auto"):
        monkeypatch.setenv("GPUCNN_BACKEND", unset)
        assert gpucnn.get_backend().name in gpucnn.available_backends()


def test_name_given_in_the_code_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_BACKEND", "nonsense")
    assert gpucnn.zeros(2, backend="numpy").backend.name == "numpy"
    with pytest.raises(ValueError, match="backend is 'abacus', but the backends are auto, numpy"):
        gpucnn.zeros(2, backend="abacus")


def test_backend_of_a_name_is_made_once_also_by_threads_at_once() -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(gpucnn.get_backend("numpy"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(backend) for backend in found}) == 1
    assert found[0] is gpucnn.get_backend("numpy")


def test_every_available_backend_can_be_had(backend: str) -> None:
    assert backend in gpucnn.available_backends()
    for name in gpucnn.available_backends():
        assert gpucnn.get_backend(name).name == name


def test_scope_chooses_the_backend_of_new_tensors_and_ends() -> None:
    outer, inner = Abacus(), Abacus()
    before = gpucnn.zeros(2)
    with gpucnn.use_backend(outer) as chosen:
        assert chosen is outer
        with gpucnn.use_backend(inner):
            assert gpucnn.zeros(2).backend is inner
            assert gpucnn.zeros(2, backend="numpy").backend.name == "numpy"
            assert (before + 1).backend is before.backend
        assert gpucnn.nn.Linear(2, 3).weight.backend is outer
    assert gpucnn.zeros(2).backend is before.backend


def test_scope_ends_after_an_error_too() -> None:
    before = gpucnn.get_backend()
    with pytest.raises(ZeroDivisionError), gpucnn.use_backend(Abacus()):
        raise ZeroDivisionError
    assert gpucnn.get_backend() is before


def test_scope_of_a_misspelt_name_does_not_begin() -> None:
    with pytest.raises(ValueError, match="'cudda', but the backends are"), gpucnn.use_backend("cudda"):
        pytest.fail("the scope must not begin")


def test_scope_holds_in_its_own_thread_alone() -> None:
    abacus, default, seen = Abacus(), gpucnn.get_backend(), {}
    scoped, looked = threading.Event(), threading.Event()

    def with_scope() -> None:
        with gpucnn.use_backend(abacus):
            scoped.set()
            looked.wait(10)
            seen["inside"] = gpucnn.zeros(1).backend

    thread = threading.Thread(target=with_scope)
    thread.start()
    scoped.wait(10)
    seen["outside"] = gpucnn.zeros(1).backend
    looked.set()
    thread.join()
    assert seen == {"inside": abacus, "outside": default}


def test_scope_around_a_thread_does_not_reach_into_it() -> None:
    default, seen = gpucnn.get_backend(), []
    with gpucnn.use_backend(Abacus()):
        thread = threading.Thread(target=lambda: seen.append(gpucnn.get_backend()))
        thread.start()
        thread.join()
    assert seen == [default]


def test_model_moves_to_another_backend_and_computes_there(backend: str) -> None:
    with gpucnn.use_backend(backend):
        model, x = gpucnn.nn.models.x_or_not_x(), gpucnn.rand(2, 1, 5, 5)
        expected = model(x).numpy()
    abacus = Abacus()
    assert model.to(abacus) is model
    assert {p.backend for p in model.parameters()} == {abacus}
    with pytest.raises(
        ValueError, match=rf"conv2d_max_pool2d: input is on {backend}, weight on abacus; .*weight\.to\('{backend}'\)"
    ):
        model(x)
    y = model(x.to(abacus))
    assert y.backend is abacus
    if backend == "numpy":
        assert y.tolist() == expected.tolist()
