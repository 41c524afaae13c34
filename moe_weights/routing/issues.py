"""What is wrong with a bundle, where, and how does that become an exception?

BundleError              1   the bundle says something it must not say; lists its issues
├── MissingFileError     1   a required file is not there (also FileNotFoundError)
BundleExistsError        6   a bundle of that run id is there already (also FileExistsError)
VectorError              1   values are not one row of numbers (also TypeError)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from moe_weights.errors import InvalidDataError, OutputError

Scope: TypeAlias = Literal["file", "schema", "event", "layout", "manifest", "bundle"]

MAX_ISSUES = 100  # a damaged trace of a million lines must not become a message of a million lines
_SCOPE_ORDER: tuple[Scope, ...] = ("file", "schema", "event", "layout", "manifest", "bundle")
_SHOWN_LINES = 20


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong.

    Attributes:
        scope: What was looked at: the bytes of a file, one payload against its schema, one event,
            the layout, the manifest, or the bundle as a whole.
        code: Closed name of the fault, for example "entropy_mismatch".
        message: What, where, how to mend it.
        place: `<file>:<line>` of a line of a trace, the file of a JSON file, "" for a payload that
            was never in a file. Takes no part in comparisons.
    """

    scope: Scope
    code: str
    message: str
    place: str = field(default="", compare=False)

    def __str__(self) -> str:
        head = f"{self.place}: " if self.place else ""
        return f"{head}{self.scope} {self.code}: {self.message}"


SemanticIssue = Issue


class BundleError(InvalidDataError):
    """A bundle is refused; `issues` says why and where."""

    def __init__(self, head: str, issues: Sequence[Issue] = ()) -> None:
        """Keep the first line of the text and the issues, in the order of `head`."""
        self.head = head
        self.issues = tuple(issues)
        super().__init__(head, self.issues)

    def __str__(self) -> str:
        lines = [f"  {issue}" for issue in self.issues[:_SHOWN_LINES]]
        if len(self.issues) > _SHOWN_LINES:
            lines.append(f"  and {len(self.issues) - _SHOWN_LINES} more")
        return "\n".join([self.head, *lines])


class MissingFileError(BundleError, FileNotFoundError):
    """A required file of a bundle is not there."""


class BundleExistsError(OutputError, FileExistsError):
    """There is something at the place of a bundle that is to be written."""


class VectorError(InvalidDataError, TypeError):
    """Values that should be one row of numbers are something else."""


def sort_issues(issues: Iterable[Issue]) -> list[Issue]:
    """Return the issues by scope: single events, then the layout, then what holds all together."""
    return sorted(issues, key=lambda issue: _SCOPE_ORDER.index(issue.scope))


def schema_error(issues: Sequence[Issue]) -> BundleError:
    """Return the refusal of payloads that break their schema."""
    return BundleError(
        f"run bundle failed schema validation: {issues[0].message}", issues[:MAX_ISSUES]
    )


def semantic_error(issues: Sequence[Issue]) -> BundleError:
    """Return the refusal of payloads that contradict themselves or one another."""
    codes = ", ".join(issue.code for issue in issues[:MAX_ISSUES])
    return BundleError(f"run bundle failed semantic validation: {codes}", issues[:MAX_ISSUES])


def file_error(code: str, message: str, place: str) -> BundleError:
    """Return the refusal of a file whose bytes cannot be taken as JSON."""
    issue = Issue("file", code, message, place)
    return BundleError(f"run bundle cannot be read: {code}", [issue])


def missing_file_error(path: Path) -> MissingFileError:
    """Return the refusal of a bundle that lacks a required file, or has a link to nothing."""
    message = "the file is not there; a bundle has manifest.json, raw_trace.ndjson and layout.json"
    if path.is_symlink():
        message = "the file is a link whose target is not there; copy the file itself"
    issue = Issue("file", "missing_file", message, str(path))
    return MissingFileError("run bundle cannot be read: missing_file", [issue])
