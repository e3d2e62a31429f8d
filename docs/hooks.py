"""What the site is told beyond mkdocs.yml: notebooks become pages, and examples with prompts are shown as such."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# -- pages -----------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Beside each notebook, which can be downloaded, a page with its cells and their outputs."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, page, content=notebook_page(file.content_string, file.name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`>>>` begins an example, whose results are not Python; a link to a notebook leads to its page."""
    markdown = re.sub(r"(?m)^( *```)python(?=\n *>>>)", r"\1pycon", markdown)
    return re.sub(r"\]\(([^)\s]+)\.ipynb\)", r"](\1.md)", markdown)


def notebook_page(text: str, name: str) -> str:
    """A notebook as Markdown."""
    title, *cells = json.loads(text)["cells"]
    parts = [joined(title["source"]), f'<a href="{name}.ipynb" download>Download the notebook</a>']
    for cell in cells:
        source = joined(cell["source"])
        parts += [source] if cell["cell_type"] == "markdown" else [f"```python\n{source}\n```", *outputs(cell)]
    return "\n\n".join(parts) + "\n"


def outputs(cell: dict[str, Any]) -> list[str]:
    """What a code cell has put out: text, and pictures as part of the page."""
    shown = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            source = "data:image/png;base64," + joined(data["image/png"]).replace("\n", "")
            shown.append(f'<p><img alt="What the cell above draws" src="{source}"></p>')
        else:
            result = html.escape(joined(output.get("text") or data["text/plain"]).rstrip(), quote=False)
            shown.append(f'<pre class="output"><code>{result}</code></pre>')
    return shown


def joined(text: str | list[str]) -> str:
    """A notebook's text, which may be a list of its lines."""
    return "".join(text)


# -- docstrings ------------------------------------------------------------------------------------


class Prompts(griffe.Extension):
    """Examples in docstrings, lines from `>>>` to the next empty line, as blocks of code; Markdown would quote them."""

    def on_instance(self, *, obj: griffe.Object, **context: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"(?m)^>>> (?:.+\n?)+", lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", text)
