"""README.md and the pages of docs/ do what they say: their code prints what the page shows, and what they name exists.

A ```python block with `>>>` prompts is a doctest: the text is the expected output. One without prompts is run. The
blocks of a page share one namespace, in order. `<!-- not run: reason -->` on the line before a block skips it (it must
still be Python).
"""

from __future__ import annotations

import doctest
import html
import importlib.util
import inspect
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is that of its first line of text, from 1."""

    page: Path
    language: str
    text: str
    line: int
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r" *(`{3,})(\w*)", lines[at])
        if fence is None:
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[1]), None)
        assert end is not None, f"{page.name}:{at + 1}: this block is never closed"
        reason = NOT_RUN.fullmatch(lines[at - 1].strip()) if at else None
        indent = len(lines[at]) - len(lines[at].lstrip())
        text = "".join(line[indent:] + "\n" for line in lines[at + 1 : end])
        blocks.append(Block(page, fence[2], text, at + 2, reason and reason[1]))
        at = end + 1
    return blocks


def prose(page: Path) -> str:
    """The page without code and comments: where links are links."""
    text = page.read_text(encoding="utf-8")
    for code in (r"(?ms)^ *(`{3,}).*?^ *\1 *$", r"(?s)<!--.*?-->", r"(`+)[^`].*?\1"):
        text = re.sub(code, "", text)
    return text


# -- code ------------------------------------------------------------------------------------------


def run_python(page: Path) -> None:
    """Run the page's Python from top to bottom; AssertionError shows what it printed against what it should."""
    namespace: dict[str, object] = {"__name__": page.stem}
    complaints: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for block in read_blocks(page):
        if block.language != "python" or block.not_run:
            continue
        if ">>>" not in block.text:
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(block.text, {}, block.place, str(page), block.line - 1)
        test.globs = namespace  # DocTest copies what it is given, and the next block goes on from here
        runner.run(test, out=complaints.append, clear_globs=False)
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.fixture
def fresh_session(tmp_path, monkeypatch):
    """What a reader has who starts Python in an empty folder on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    gpucnn.manual_seed(0)
    with gpucnn.use_backend("numpy"):
        yield


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="what PyTorch does is asked of PyTorch")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
@pytest.mark.usefixtures("fresh_session")
def test_code_prints_what_the_page_shows(page):
    run_python(page)


def test_blocks_that_are_not_run_are_python_at_least():
    blocks = [block for page in PAGES for block in read_blocks(page) if block.not_run]
    for block in blocks:
        compile(block.text, block.place, "exec")
    if blocks:
        pytest.skip("; ".join(f"{block.place} is not run: {block.not_run}" for block in blocks))


# -- links -----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The ids that GitHub and MkDocs give to the page's headings, and those set by hand."""
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text(encoding="utf-8")))
    text = re.sub(r"(?ms)^ *(`{3,}).*?^ *\1 *$", "", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"(?m)^#+ +(.+?) *#*$", text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.replace("`", ""))
        slug = re.sub(r"[^\w\- ]", "", html.unescape(plain).lower()).replace(" ", "-")
        again = next(f"{slug}{n}" for n in ["", *(f"-{i}" for i in range(1, 99))] if f"{slug}{n}" not in found)
        found.add(again)
    return found


def broken_links(page: Path) -> list[str]:
    """What is wrong with the page's links and images that point into this repository."""
    text = prose(page)
    targets = [*re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", text), *re.findall(r'(?:src|href)="([^"]+)"', text)]
    problems = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            problems.append(f"{page.name} links to {target}: there is no {path}")
        elif anchor and anchor not in anchors(file):
            problems.append(f"{page.name} links to {target}: {file.name} has no heading #{anchor}")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_images_and_anchors_exist(page):
    assert broken_links(page) == []


# -- commands --------------------------------------------------------------------------------------


@cache
def make_targets() -> set[str]:
    makefile = ROOT / "Makefile"
    text = makefile.read_text(encoding="utf-8") if makefile.exists() else ""
    return {name for names in re.findall(r"(?m)^([\w.\- ]+?) *:(?!=)", text) for name in names.split()}


@cache
def cli_options() -> dict[str, set[str]]:
    """The options of each sub-command of gpucnn."""
    if importlib.util.find_spec("gpucnn.cli") is None:
        return {}
    import typer.main

    from gpucnn.cli import app

    group = typer.main.get_command(app)
    return {
        name: {"--help", *(o for p in command.params for o in (*p.opts, *p.secondary_opts))}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def unknown_commands(page: Path) -> list[str]:
    """Make targets, sub-commands of gpucnn and their options that the page's sh blocks name and that do not exist."""
    problems = []
    for block in read_blocks(page):
        if block.language not in ("sh", "bash", "shell", "console"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):  # GPUCNN_BACKEND=numpy gpucnn …
                words = words[1:]
            if words[:2] == ["python", "-m"]:
                words = words[2:]
            if not words:
                continue
            program, arguments = Path(words[0]).name, words[1:]
            if program == "make":
                named = [word for word in arguments if not re.match(r"-|\w+=", word)]
                problems += [f"{block.place}: make {w}: no such target" for w in named if w not in make_targets()]
            elif program == "gpucnn" and arguments and not arguments[0].startswith("-"):
                command, *rest = arguments
                options = cli_options().get(command)
                if options is None:
                    problems.append(f"{block.place}: gpucnn {command}: no such sub-command")
                    continue
                given = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
                problems += [f"{block.place}: gpucnn {command} has no {o}" for o in given if o not in options]
    return problems


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_is_named_exists(page):
    assert unknown_commands(page) == []


# -- docs/differences.md against PyTorch -----------------------------------------------------------

# What the page says is left out (rows 28, 36), added (17, 22), or has another default (20, 36; for pad, None means 0).
LEFT_OUT = {
    "size_average", "reduce",
    "epochs", "steps_per_epoch", "anneal_strategy", "cycle_momentum", "base_momentum", "max_momentum",
}  # fmt: skip
OTHER_DEFAULT = {
    "Softmax.dim", "LogSoftmax.dim", "softmax.dim", "log_softmax.dim", "pad.value", "OneCycleLR.total_steps",
}  # fmt: skip
ADDED = {
    "dropout.generator",
    "dropout1d.generator",
    "dropout2d.generator",
    "batch_norm.residual",
    "batch_norm.activation",
}
BASE_CLASSES = {"Module", "Sequential", "Parameter", "Buffer", "Optimizer", "LRScheduler"}


def arguments(function: Any) -> dict[str, Any]:
    """The names and defaults of a function's arguments, as far as it tells; one written in C++ does not."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return {}
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def test_arguments_come_in_pytorchs_order_with_pytorchs_defaults(torch):
    homes = [
        (nn, torch.nn), (F, torch.nn.functional), (nn.init, torch.nn.init),
        (optim, torch.optim), (optim, torch.optim.lr_scheduler), (optim, torch.nn.utils),
    ]  # fmt: skip
    differences, compared = [], 0
    for ours, theirs in homes:
        for name, function in vars(ours).items():
            public = inspect.isroutine(function) or inspect.isclass(function)
            if not public or name in BASE_CLASSES or not hasattr(theirs, name):
                continue
            wanted = {n: d for n, d in arguments(getattr(theirs, name)).items() if n not in LEFT_OUT}
            given = {n: d for n, d in arguments(function).items() if f"{name}.{n}" not in ADDED}
            if not wanted:
                continue
            compared += 1
            if list(given) != list(wanted)[: len(given)]:
                differences.append(f"{name}({', '.join(given)}) against {name}({', '.join(wanted)})")
            differences += [
                f"{name}: {n}={default!r} against {wanted[n]!r}"
                for n, default in given.items()
                if n in wanted and default != wanted[n] and f"{name}.{n}" not in OTHER_DEFAULT
            ]
    assert differences == []
    assert compared > 60


LAYERS = [
    ("Conv2d", (6, 64, (3, 5)), {"groups": 2}),
    ("Conv2d", (6, 64, 3), {"bias": False}),
    ("ConvTranspose2d", (64, 6, (3, 5)), {"groups": 2}),
    ("Linear", (90, 70), {}),
    ("BatchNorm1d", (5,), {}),
    ("BatchNorm2d", (5,), {"affine": False}),
    ("InstanceNorm2d", (5,), {"affine": True, "track_running_stats": True}),
    ("GroupNorm", (2, 6), {}),
    ("LayerNorm", ((4, 7),), {}),
    ("PReLU", (3,), {}),
]


@pytest.mark.parametrize(("name", "args", "options"), LAYERS, ids=lambda value: value if isinstance(value, str) else "")
def test_layers_have_pytorchs_state_and_start_from_its_distributions(torch, name, args, options):
    gpucnn.manual_seed(0)
    torch.manual_seed(0)
    ours = getattr(nn, name)(*args, **options).state_dict()
    theirs = getattr(torch.nn, name)(*args, **options).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: tuple(t.shape) for n, t in theirs.items()}
    for n, t in theirs.items():
        a, b = ours[n].numpy(), t.numpy()
        # for n uniform numbers the largest is 1/n below the bound, and the mean square varies by 0.9/√n, on average
        assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=8 / b.size)
        assert np.square(a).mean() == pytest.approx(np.square(b).mean(), rel=6 / np.sqrt(b.size))


def test_pytorch_does_what_the_page_says_of_it(torch):
    f, ones, nan = torch.nn.functional, torch.ones, float("nan")
    assert (ones(1) + ones(1).double()).dtype == torch.float64  # row 2
    with pytest.raises(RuntimeError, match="scalar type"):
        f.conv2d(ones(1, 1, 3, 3), ones(1, 1, 1, 1).double())
    with pytest.raises(RuntimeError, match="requires grad"):  # row 7
        ones(1, requires_grad=True).numpy()
    assert ones(0).mean().isnan()  # row 11
    with pytest.raises(ValueError, match="step"):  # row 13
        ones(3)[::-1]
    assert f.conv2d(ones(1, 5, 5), ones(1, 1, 3, 3)).shape == (1, 3, 3)  # row 14
    with pytest.raises(RuntimeError, match="strided"):  # row 15
        f.conv2d(ones(1, 1, 5, 5), ones(1, 1, 3, 3), stride=2, padding="same")
    with pytest.raises(RuntimeError, match="padding"):
        f.conv2d(ones(1, 1, 5, 5), ones(1, 1, 3, 3), padding=(0, 1, 2, 3))
    assert f.max_pool2d(torch.tensor([[[[5, nan, 4, nan]]]]), (1, 4), return_indices=True)[1].item() == 3  # row 17
    assert str(f.relu(torch.tensor(-0.0)).item()) == "-0.0"  # row 18
    assert f.softplus(torch.tensor(21.0).double()).item() == 21  # row 19
    with pytest.raises(TypeError, match=r"ndarray"):  # row 23
        f.cross_entropy(torch.zeros(1, 3), np.array([1]))
    with pytest.raises(IndexError):  # row 24
        f.cross_entropy(torch.zeros(1, 3), torch.tensor([3]))
    f.cross_entropy(ones(1, 3, requires_grad=True).softmax(1), torch.tensor([0]))  # row 25: would fail on a warning
    with pytest.warns(UserWarning, match="target size"):  # row 26
        f.mse_loss(ones(3, 1), ones(3))
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(RuntimeError, match="bias"):  # row 32
        layer.load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.zeros(4)})
    assert not layer.weight.any()
    layer.register_forward_hook(lambda module, inputs, output: output * 0)  # row 33
    assert not layer(ones(1, 2)).any()
    layer.weight.grad = torch.full((3, 2), nan)  # row 37
    assert torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0).isnan()
    with pytest.raises(RuntimeError, match="requires grad"):  # row 7
        np.asarray(ones(1, requires_grad=True))
    with pytest.raises(ValueError, match="negative"):  # row 42
        torch.from_numpy(np.ones(3)[::-1])
    with pytest.warns(UserWarning, match="not writable"):
        torch.from_numpy(np.broadcast_to(np.ones(1), 3))


# -- these checks themselves -----------------------------------------------------------------------


def a_page(tmp_path: Path, text: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_a_wrong_number_fails(tmp_path):
    run_python(a_page(tmp_path, "```python\n>>> 0.1 + 0.2\n0.30000000000000004\n```\n"))
    with pytest.raises(AssertionError, match=r"line 2.*\s+.*\s+0.1 \+ 0.2\s+Expected:\s+0.3\s+Got:"):
        run_python(a_page(tmp_path, "```python\n>>> 0.1 + 0.2\n0.3\n```\n"))


def test_a_missing_error_fails(tmp_path):
    with pytest.raises(AssertionError, match="Expected:"):
        run_python(
            a_page(tmp_path, "```python\n>>> int('1')\nTraceback (most recent call last):\nValueError: no\n```\n")
        )


def test_blocks_share_one_namespace_and_run_in_order(tmp_path):
    page = a_page(
        tmp_path, "```python\nx = 2\n```\nand\n```python\n>>> x = x + 1\n>>> x\n3\n```\n```python\nassert x == 3\n```"
    )
    run_python(page)


def test_an_error_in_a_block_without_prompts_fails(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_python(a_page(tmp_path, "```python\n1 / 0\n```\n"))


def test_a_block_marked_not_run_is_left_alone(tmp_path):
    page = a_page(tmp_path, "<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n")
    run_python(page)
    assert [b.not_run for b in read_blocks(page)] == ["needs a GPU"]


def test_a_block_that_never_ends_fails(tmp_path):
    with pytest.raises(AssertionError, match=r"page.md:2: this block is never closed"):
        read_blocks(a_page(tmp_path, "text\n```python\n1\n"))


def test_broken_links_anchors_and_images_are_found(tmp_path):
    text = "# One two\n## One two\n[a](#one-two) [b](#one-two-1) [c](#three) ![d](no.png) [e](https://x.y) `[f](g)`\n"
    assert broken_links(a_page(tmp_path, text)) == [
        "page.md links to #three: page.md has no heading #three",
        "page.md links to no.png: there is no no.png",
    ]


def test_unknown_commands_are_found(tmp_path):
    assert unknown_commands(
        a_page(tmp_path, "```sh\nmake nonsense  # a comment\n$ gpucnn juggle --balls 3\n```\n")
    ) == [
        "page.md:2: make nonsense: no such target",
        "page.md:2: gpucnn juggle: no such sub-command",
    ]
