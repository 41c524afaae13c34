"""Which JSON documents are taken, and how is a refused one described?

Only what every parser reads the same way: UTF-8, no repeated keys, finite numbers, no half
surrogates, no bottomless nesting. All problems of a document are told at once, each with scope,
code and place.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from moe_weights.atomic_files import open_regular_file
from moe_weights.errors import CheckpointError

MAX_DEPTH = 64
MAX_DOCUMENT_NBYTES = 1 << 28
_MAX_PROBLEMS = 50
Scope = Literal["file", "json", "schema", "semantic", "arrays"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentProblem:
    """One fault of a document.

    Attributes:
        scope: Which check found it.
        code: Stable name of the fault.
        place: JSON path, `line:column`, or a member of the side file.
        message: What is wrong.
    """

    scope: Scope
    code: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.scope}/{self.code}: {self.message}"


class DocumentError(CheckpointError):
    """A trace or capture that is refused; all its problems are listed."""

    def __init__(self, source: str, problems: Sequence[DocumentProblem]) -> None:
        """Keep the document's name and its problems, in the order found."""
        self.source = source
        self.problems = tuple(problems)
        super().__init__(source, self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"{self.source}: refused, {count} problem{'s' if count != 1 else ''}"]
        lines += [f"  {problem}" for problem in self.problems[:_MAX_PROBLEMS]]
        if count > _MAX_PROBLEMS:
            lines.append(f"  and {count - _MAX_PROBLEMS} more")
        return "\n".join(lines)


class _Members(dict[str, object]):
    """A JSON object that remembers its repeated keys."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.repeated: list[str] = []
        if len(self) != len(pairs):
            seen: set[str] = set()
            for key, _value in pairs:
                if key in seen:
                    self.repeated.append(key)
                seen.add(key)


@dataclass(frozen=True, slots=True)
class _NotFinite:
    literal: str


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON object strictly.

    Raises:
        DocumentError: it cannot be read or is not strict JSON; nothing of it is used.
    """
    try:
        with open_regular_file(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_DOCUMENT_NBYTES:
                raise _refusal(path, "file", "too_large", f"more than {MAX_DOCUMENT_NBYTES} bytes")
            encoded = stream.read()
    except OSError as error:
        text = error.strerror or str(error)
        raise _refusal(path, "file", "unreadable", text) from error
    try:
        text = encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8"
        raise _refusal(path, "json", "not_utf8", message) from error
    try:
        document = json.loads(
            text,
            object_pairs_hook=_Members,
            parse_constant=_NotFinite,
            parse_float=_parse_float,
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _refusal(path, "json", "not_json", error.msg, place) from error
    except RecursionError as error:
        raise _refusal(path, "json", "too_deep", "nested too deeply") from error
    except ValueError as error:
        # Python refuses whole numbers of more than some thousand digits.
        raise _refusal(path, "json", "not_json", str(error)) from error
    problems: list[DocumentProblem] = []
    _check_values(document, "$", 0, problems)
    if not problems and not isinstance(document, dict):
        problems.append(_problem("json", "not_an_object", "$", "the document is not an object"))
    if problems:
        raise DocumentError(str(path), problems)
    members: dict[str, Any] = document
    return members


def schema_problems(document: dict[str, Any], schema_name: str) -> list[DocumentProblem]:
    """Return what a JSON Schema of this package finds wrong, by place.

    Args:
        document: As `read_document` gives it.
        schema_name: File stem in `schemas/`, for example `trace.v1`.
    """
    # Loaded here: only documents need it, and programs that write none should start fast.
    import jsonschema

    validator = jsonschema.Draft202012Validator(load_schema(schema_name))
    return [
        _problem(
            "schema",
            "schema_version" if list(error.absolute_path) == ["schema_version"] else "schema",
            _json_path(error.absolute_path),
            _shortened(error.message),
        )
        for error in sorted(
            validator.iter_errors(document), key=lambda error: _json_path(error.absolute_path)
        )
    ]


def load_schema(schema_name: str) -> dict[str, Any]:
    """Return a JSON Schema that is shipped with the package."""
    folder = resources.files("moe_weights.tracing") / "schemas"
    text = (folder / f"{schema_name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def semantic_problem(code: str, place: str, message: str) -> DocumentProblem:
    """Return a fault that no schema can say."""
    return _problem("semantic", code, place, message)


def _problem(scope: Scope, code: str, place: str, message: str) -> DocumentProblem:
    return DocumentProblem(scope=scope, code=code, place=place, message=message)


def _refusal(path: Path, scope: Scope, code: str, message: str, place: str = "$") -> DocumentError:
    return DocumentError(str(path), [_problem(scope, code, place, message)])


def _parse_float(literal: str) -> object:
    value = float(literal)
    return value if math.isfinite(value) else _NotFinite(literal)


def _check_values(value: object, place: str, depth: int, problems: list[DocumentProblem]) -> None:
    if depth > MAX_DEPTH:
        message = f"nested deeper than {MAX_DEPTH}"
        problems.append(_problem("json", "too_deep", place[:80], message))
    elif isinstance(value, _NotFinite):
        message = f"{value.literal} is not a finite JSON number"
        problems.append(_problem("json", "non_finite", place, message))
    elif isinstance(value, str):
        _check_text(value, place, problems)
    elif isinstance(value, _Members):
        problems += [
            _problem("json", "duplicate_key", place, f"key {key!r} occurs twice")
            for key in value.repeated
        ]
        for key, member in value.items():
            _check_text(key, place, problems)
            _check_values(member, f"{place}.{key}", depth + 1, problems)
    elif isinstance(value, list):
        for position, member in enumerate(value):
            _check_values(member, f"{place}[{position}]", depth + 1, problems)


def _check_text(text: str, place: str, problems: list[DocumentProblem]) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        problems.append(
            _problem("json", "half_surrogate", place, "half of a surrogate pair is no Unicode text")
        )


def _json_path(parts: Sequence[str | int] | Any) -> str:
    return "$" + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)


def _shortened(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:200]}..."
