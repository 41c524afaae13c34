"""Config documents for tests: the template with some values changed."""

from __future__ import annotations

import json
import re
import tempfile
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_weights.atomic_files import JsonValue
from moe_weights.config.load import load_config
from moe_weights.config.template import template_config
from moe_weights.errors import ConfigError


class _Absent:
    """Marks a key to remove."""


ABSENT = _Absent()


def make_config_document(changes: dict[str, Any] | None = None) -> dict[str, JsonValue]:
    """Return the template with changes.

    Args:
        changes: Dotted key such as `extract_rules[0].ndim` to its new value; `ABSENT` removes it.
    """
    document: Any = template_config("/model")
    for dotted, value in (changes or {}).items():
        *parents, key = [
            int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", dotted)
        ]
        holder = document
        for part in parents:
            holder = holder[part]
        if isinstance(value, _Absent):
            del holder[key]
        else:
            holder[key] = value
    return document


STRANGE_VALUES: tuple[Any, ...] = (None, True, 0, -1, 2.5, "", "x", [], [None], {}, {"k": [1]})


def make_strange_documents() -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Give the template with each of its values replaced by each strange one, and the place."""
    for place in _places(make_config_document(), ""):
        for value in STRANGE_VALUES:
            yield f"{place} = {value!r}", make_config_document({place: value})


def _places(value: Any, parent: str) -> Iterator[str]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        place = f"{parent}[{key}]" if isinstance(key, int) else f"{parent}.{key}".lstrip(".")
        yield place
        if isinstance(item, dict | list):
            yield from _places(item, place)


class ConfigFileCase(unittest.TestCase):
    """A test case with a temporary folder and one config file."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "analysis_config.json"

    def write(self, changes: dict[str, Any] | None = None) -> Path:
        """Write the changed template."""
        return self.write_text(json.dumps(make_config_document(changes)))

    def write_text(self, text: str) -> Path:
        """Write any text."""
        self.path.write_text(text, encoding="utf-8")
        return self.path

    def problems(self, changes: dict[str, Any]) -> list[str]:
        """Return the problems of the changed template, one line each."""
        self.write(changes)
        return self.problems_of(lambda: load_config(self.path))

    def problems_of(self, load: Callable[[], object]) -> list[str]:
        """Return the problems that `load` raises, one line each."""
        with self.assertRaises(ConfigError) as caught:
            load()
        return [str(problem) for problem in caught.exception.problems]
