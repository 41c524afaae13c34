"""How do Markdown tables show values letter by letter?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType


def code(text: str) -> str:
    """Return a table cell that shows `text` as code."""
    return "`" + str(text).replace("|", "\\|") + "`"


def escape(text: str) -> str:
    """Return a table cell that shows `text` letter by letter."""
    for plain, escaped in (("|", "\\|"), ("<", "&lt;"), ("*", "\\*")):
        text = text.replace(plain, escaped)
    return text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Give the lines of a table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def first_paragraph(documented: type | ModuleType) -> str:
    """Return what a docstring says first, on one line."""
    return " ".join((documented.__doc__ or "").split("\n\n")[0].split())
