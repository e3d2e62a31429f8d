"""Names that people see, of classes, layers and data sets. They come from files and folders, and may be anything."""

from __future__ import annotations

import re

LONGEST = 4096  # letters of a name or a path
# What a terminal takes for commands, lines or another direction of writing, and what stands for a byte of a file name
# that is no UTF-8. Not all that `str.isprintable` denies: some scripts and emojis are joined by invisible characters.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_showable(value: object) -> bool:
    """Whether it is text, neither empty nor without end, that a terminal can show."""
    return isinstance(value, str) and 0 < len(value) < LONGEST and not _UNSHOWABLE.search(value)


def escaped(text: str) -> str:
    r"""Text of which a terminal shows every character: an escape is \x1b."""
    return _UNSHOWABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def showable(name: str) -> str:
    """A name of anything as one that `is_showable`."""
    return shortened(escaped(name), LONGEST - 1) or "–"


def shortened(name: str, most: int) -> str:
    """At most so many letters of a name."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
