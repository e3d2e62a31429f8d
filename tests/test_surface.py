"""What the package may do beyond computing, and where: SECURITY.md says why. Anything else is a failure here."""

import ast
import asyncio
import http.client
import re
import socket
import sys
import threading
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import audit
import pytest

import gpucnn

ROOT = Path(__file__).parent.parent
PACKAGE = Path(gpucnn.__file__).parent
SECURITY = (ROOT / "SECURITY.md").read_text("utf-8")

# Modules that run or build code, start programs, reach the network or read objects of any kind.
MODULES = {
    "cloudpickle", "code", "codeop", "cffi", "ctypes", "dill", "ftplib", "http", "jsonpickle", "joblib", "marshal",
    "multiprocessing", "pickle", "pickletools", "pty", "requests", "runpy", "shelve", "smtplib", "socket",
    "socketserver", "subprocess", "telnetlib", "urllib", "webbrowser", "xml", "xmlrpc", "yaml",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint"}
# Of os and tempfile.
FUNCTIONS = {"execl", "execle", "execlp", "execv", "execve", "execvp", "fork", "forkpty", "mktemp", "popen",
             "posix_spawn", "spawnl", "spawnv", "spawnve", "startfile", "system"}  # fmt: skip

STATED = {
    ("backends/numpy_backend.py", "ctypes"): "mallopt of the C library",
    ("benchmark/child.py", "import_module"): "the module that the benchmark's own parent names",
    ("benchmark/command.py", "subprocess"): "git",
    ("benchmark/peers.py", "import_module"): "jax, tinygrad",
    ("benchmark/processes.py", "subprocess"): "Python, once for each measurement",
    ("benchmark/providers.py", "import_module"): "torch",
    ("benchmark/real_work.py", "import_module"): "torch",
    ("data/download.py", "http"): "names of errors",
    ("data/download.py", "urllib"): "fetches data sets, on request, and compares their SHA-256",
    ("data/formats.py", "pickle"): "CIFAR's Python version: plain arrays of bytes alone, by stand-ins",
    ("data/formats.py", "pickletools"): "looks through such a file before it is read",
    ("devices/cuda.py", "ctypes"): "asks the driver for its version",
    ("devices/emulator.py", "ctypes"): "loads the kernels that it has compiled",
    ("devices/emulator.py", "subprocess"): "the C++ compiler, addr2line",
    ("devices/nvrtc.py", "ctypes"): "calls NVIDIA's compiler",
    ("devices/tensor_map.py", "ctypes"): "has the driver encode tensor maps",
    ("doctor.py", "subprocess"): "nvidia-smi, the compiler's version",
    ("page/server.py", "socket"): "listens on 127.0.0.1",
    ("page/server.py", "webbrowser"): "opens the page, on request",
    ("__init__.py", "import_module"): "parts of gpucnn that are imported at first use",
    ("verify.py", "subprocess"): "git, nvidia-smi",
}


def uses(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """(what, line) of each import and call that is to be stated."""
    for node in nodes:
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((name, line) for alias in node.names if (name := alias.name.partition(".")[0]) in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if not node.level and (module := (node.module or "").partition(".")[0]) in MODULES:
                yield module, line
            if node.module in ("os", "posix", "nt", "tempfile"):
                yield from ((name, line) for name in names & FUNCTIONS)
        elif isinstance(node, ast.Name) and node.id in BUILTINS and isinstance(node.ctx, ast.Load):
            yield node.id, line
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in FUNCTIONS:
            if node.value.id in ("os", "posix", "nt", "tempfile"):
                yield node.attr, line
        elif isinstance(node, ast.Call):
            yield from called(node)


def called(call: ast.Call) -> Iterator[tuple[str, int]]:
    function = call.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    options = {word.arg: word.value for word in call.keywords}

    def is_value(option: str, value: object) -> bool:
        return option in options and isinstance(options[option], ast.Constant) and options[option].value is value

    if name == "import_module":
        yield "import_module", call.lineno
    if "shell" in options and not is_value("shell", False):
        yield "shell", call.lineno
    if "allow_pickle" in options and not is_value("allow_pickle", False):
        yield "allow_pickle", call.lineno
    of_numpy = (
        isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "np"
    )
    if name == "load" and of_numpy and not is_value("allow_pickle", False):
        yield "np.load", call.lineno
    if name in ("extract", "extractall") and isinstance(function, ast.Attribute) and not options.get("filter"):
        yield f"{name} without filter", call.lineno


@cache
def syntax() -> dict[str, list[ast.AST]]:
    """The nodes of each file of the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): [*ast.walk(ast.parse(path.read_text("utf-8")))] for path in paths}


@cache
def found() -> dict[tuple[str, str], list[int]]:
    places: dict[tuple[str, str], list[int]] = {}
    for path, nodes in syntax().items():
        for what, line in uses(nodes):
            places.setdefault((path, what), []).append(line)
    return places


def test_nothing_is_unpickled_evaluated_or_run_but_where_it_is_stated() -> None:
    surprises = {place: lines for place, lines in found().items() if place not in STATED}
    assert not surprises


def test_what_is_stated_is_still_there_and_in_the_security_page() -> None:
    assert set(STATED) <= set(found())
    for path, what in STATED:
        if not path.startswith("benchmark/") and what != "import_module":
            assert f"`{path}`" in SECURITY, path
            assert f"`{what}`" in SECURITY, what


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("eval('1')", "eval"), ("x = eval", "eval"), ("exec(text)", "exec"), ("compile(a, b, 'exec')", "compile"),
        ("import pickle as p", "pickle"), ("from pickle import loads", "pickle"), ("import a, marshal", "marshal"),
        ("def f():\n    import yaml", "yaml"), ("import ctypes.util", "ctypes"), ("os.system('ls')", "system"),
        ("from os import system as s", "system"), ("os.popen('ls')", "popen"), ("__import__(name)", "__import__"),
        ("subprocess.run('ls', shell=True)", "shell"), ("run(a, shell=flag)", "shell"),
        ("np.load(path)", "np.load"), ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("importlib.import_module(name)", "import_module"), ("archive.extractall(folder)", "extractall without filter"),
    ],
)  # fmt: skip
def test_the_scan_sees_it(code, what) -> None:
    assert what in dict(uses(ast.walk(ast.parse(code))))


@pytest.mark.parametrize(
    "code", ["model.eval()", "gpucnn.compile(step)", "re.compile('a')", "np.load(path, allow_pickle=False)",
             "platform.system()", "run(a, shell=False)", "array.ctypes.data"],
)  # fmt: skip
def test_the_scan_leaves_alone_what_is_harmless(code) -> None:
    assert list(uses(ast.walk(ast.parse(code)))) == []


def test_no_string_is_handed_to_a_program_as_one_command() -> None:
    """What is started gets a list of words, so nothing in a name can become a command."""
    for path, nodes in syntax().items():
        for node in nodes:
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "subprocess"
            ):
                assert isinstance(node.args[0], ast.List | ast.Name), f"{path}:{node.lineno}"


# -- dependencies ------------------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirements() -> list[str]:
    return [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]


def test_the_core_needs_five_packages_and_every_requirement_has_a_lower_bound() -> None:
    assert len(PROJECT["dependencies"]) == 5
    for requirement in requirements():
        if not requirement.startswith("gpucnn["):
            assert re.match(r"[\w\-]+(\[\w+\])?(>=\d|==\d)", requirement), requirement


def test_no_requirement_comes_from_elsewhere_than_the_index() -> None:
    for requirement in requirements():
        assert not re.search(r"@|git\+|https?:|file:", requirement)


def test_what_the_package_imports_is_what_it_requires() -> None:
    """A top-level name that is neither Python's, nor ours, nor of a requirement or a stated peer is a mistake."""
    of_requirement = {
        "PIL", "ml_dtypes", "mlxtend", "numpy", "onnx", "rich", "safetensors", "sklearn", "starlette", "threadpoolctl",
        "typer", "uvicorn", "matplotlib", "cupy", "cuda", "google", "tensorboardX",
    }  # fmt: skip
    peers = {"torch", "jax", "tinygrad", "tensorboard", "IPython", "pytest", "pytest_benchmark", "joblib", "click"}
    names = set()
    for nodes in syntax().values():
        for node in nodes:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) - {"gpucnn"} - of_requirement - peers == set()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_refuses_a_websocket_before_it_is_opened() -> None:
    """Browsers let any site open one to any address, so Origin and Host would be all that stands in its way."""
    pytest.importorskip("starlette", reason="the page is not installed")
    pytest.importorskip("uvicorn", reason="the page is not installed")
    from gpucnn.page.server import Guard

    reached, sent = [], []

    async def app(scope, receive, send) -> None:
        reached.append(scope["type"])

    async def send(message) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8000"), (b"origin", b"http://evil.example"), (b"upgrade", b"websocket")]
    asyncio.run(Guard(app, 8000)({"type": "websocket", "path": "/", "headers": headers}, None, send))
    assert (reached, sent) == ([], [{"type": "websocket.close", "code": 1008}])


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (None, None, 200), (None, "http://127.0.0.1:{port}", 200), ("evil.example", None, 403),
        ("evil.example:{port}", "http://evil.example:{port}", 403), (None, "http://evil.example", 403),
        ("127.0.0.1:1", None, 403),
    ],
)  # fmt: skip
def test_a_running_server_listens_here_alone_and_looks_at_host_and_origin(server, host, origin, status) -> None:
    """Over a real connection, with and without the wish to become a WebSocket."""
    port, sockets = server
    assert {one.getsockname()[0] for one in sockets} == {"127.0.0.1"}
    for upgrade in ({}, {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                         "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}):  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("GET", "/api/state", skip_host=True)
        for name, value in {"Host": host or "127.0.0.1:{port}", "Origin": origin, **upgrade}.items():
            if value is not None:
                connection.putheader(name, value.format(port=port))
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, list[socket.socket]]]:
    """(port, sockets) of a page that is served as `gpucnn demo` serves it."""
    pytest.importorskip("starlette", reason="the page is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="the page is not installed")
    pytest.importorskip("PIL", reason="the page is not installed")
    from gpucnn.page import server

    runs: list[tuple[object, list[socket.socket]]] = []
    serving = threading.Event()

    class InThread(uvicorn.Server):
        def run(self, sockets=None) -> None:
            runs.append((self, sockets))
            super().run(sockets)

        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            serving.set()

    nothing = SimpleNamespace(entries={"x": SimpleNamespace(id="x", name="x", about="", path=ROOT)}, progress={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", InThread)
        thread = threading.Thread(target=server.serve, args=(nothing, ("numpy",), "numpy", 0, False), daemon=True)
        thread.start()
        assert serving.wait(30)
        running, sockets = runs[0]
        yield sockets[0].getsockname()[1], sockets
        running.should_exit = True  # type: ignore[attr-defined]
        thread.join(30)


# -- the audit ---------------------------------------------------------------------------------------------------------

GOOD = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}]}
OURS = {"name": "gpucnn", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize(
    ("packages", "complaint", "code", "said"),
    [
        ([GOOD, OURS], "", 0, "1 packages, 0 with known vulnerabilities"),
        ([GOOD, BAD], "", 1, "pillow 1.0: PYSEC-1, mended in 1.1, 2.0\n2 packages, 1 with known vulnerabilities"),
        ([], "no route to host", 2, "the packages could not be audited: no route to host"),
        ([OURS], "", 2, "the packages could not be audited: pypi.org tells nothing of these 1; does this network"),
    ],
)
def test_the_audit_ends_with_a_line_and_a_code_that_tell_safe_from_unknown(capsys, packages, complaint, code, said):
    assert audit.report(packages, complaint) == code
    printed = capsys.readouterr()
    assert said in (printed.err if code == 2 else printed.out)


@pytest.mark.parametrize(
    ("out", "error", "complaint"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}], "fixes": []}', "No known ones", ""),
        ("", "Traceback\n  File\nConnectionError: no way to pypi.org\n", "ConnectionError: no way to pypi.org"),
        ("", "", "exit code 1 and not a word"), ("No module named pip_audit", "", "exit code 1 and not a word"),
    ],
)  # fmt: skip
def test_an_audit_that_could_not_ask_says_why(monkeypatch, out, error, complaint):
    answer = SimpleNamespace(stdout=out, stderr=error, returncode=1)
    monkeypatch.setattr(audit.subprocess, "run", lambda *words, **options: answer)
    assert audit.audited()[1] == complaint
