"""The repository's own documents and scripts, as tests see them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent.parent
README = REPOSITORY / "README.md"

_CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def load_script(relative_path: str) -> ModuleType:
    """Import a script by its path; its folder is searched for its siblings, as when it is run."""
    path = REPOSITORY / relative_path
    name = "script_" + re.sub(r"\W", "_", relative_path.removesuffix(".py"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module that they are declared in
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module


def documents() -> list[Path]:
    """Return every Markdown file that people read, sorted."""
    folders = (REPOSITORY / "docs", REPOSITORY / "examples")
    found = [
        *REPOSITORY.glob("*.md"),
        *(page for folder in folders for page in folder.rglob("*.md")),
    ]
    return sorted(found)


def code_blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a language, in order."""
    return [found[2] for found in _CODE_BLOCK.finditer(text) if found[1] == language]


def without_code(text: str) -> str:
    """Return a document without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", _CODE_BLOCK.sub("", text))


def heading_anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", _CODE_BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
