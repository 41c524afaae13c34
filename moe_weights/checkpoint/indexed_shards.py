"""Which of the shards that an index names are there, and what lies beside them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moe_weights.checkpoint.file_access import is_readable_file
from moe_weights.checkpoint.file_names import escape_name
from moe_weights.checkpoint.shard_index import ShardIndex
from moe_weights.errors import ShardIndexError
from moe_weights.findings import Finding, FindingKind, list_some


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedShards:
    """The shards of an index, held against its folder.

    Attributes:
        expected: Shards with an allowed suffix, sorted.
        missing: Those of them that are no readable files, sorted.
        present: The others, sorted.
        extra_on_disk: `.safetensors` files beside the index that it does not name, sorted.
        findings: What lies in the place of a shard; shards that are not expected, or that the index
            names none.
    """

    expected: tuple[str, ...]
    missing: tuple[str, ...]
    present: tuple[str, ...]
    extra_on_disk: tuple[str, ...]
    findings: tuple[Finding, ...]


def find_indexed_shards(
    root: Path, index: ShardIndex, extensions: Sequence[str], *, strict: bool
) -> IndexedShards:
    """Look for the shards of an index; none of them is opened.

    Args:
        root: The index's folder.
        index: Names the shards relative to it.
        extensions: Allowed suffixes with their dot, case-sensitive.
        strict: Insist that every expected shard is there.

    Raises:
        ShardIndexError: `strict`, and shards are missing.
    """
    named = index.shards
    expected = tuple(file for file in named if PurePosixPath(file).suffix in extensions)
    missing = tuple(file for file in expected if not is_readable_file(root / file))
    findings = [_in_its_place(root, file) for file in missing if _is_there(root / file)]
    if missing and strict:
        causes = "".join(f"\n  {finding.message}" for finding in findings)
        raise ShardIndexError(
            f"[index] missing shard(s) referenced by index: {list_some(list(missing))}{causes}\n"
            "  how to fix: complete the download or set scan.strict_index to false"
        )
    others = sorted(set(named) - set(expected))
    if others or not named:
        findings.append(_not_scanned(index, others))
    return IndexedShards(
        expected=expected,
        missing=missing,
        present=tuple(sorted(set(expected) - set(missing))),
        extra_on_disk=_find_extra(root, frozenset(named)),
        findings=tuple(findings),
    )


def _find_extra(root: Path, named: frozenset[str]) -> tuple[str, ...]:
    return tuple(
        sorted(
            escape_name(entry.name)
            for entry in root.glob("*.safetensors")
            if entry.name not in named and is_readable_file(entry)
        )
    )


def _is_there(path: Path) -> bool:
    try:
        return path.is_symlink() or path.exists()
    except OSError:
        return False  # a name that the file system refuses, such as one of 300 letters


def _in_its_place(root: Path, file: str) -> Finding:
    path = root / file
    what = "a folder" if path.is_dir() else "a dangling link" if path.is_symlink() else "no file"
    return Finding(
        kind=FindingKind.SCAN,
        message=f"[scan] shard named by the index is {what}: {file}",
        file=file,
        hint="put the shard itself there",
    )


def _not_scanned(index: ShardIndex, others: list[str]) -> Finding:
    message = (
        f"[index] shards with a suffix that is not scanned: {list_some(others)}"
        if others
        else "[index] the index names no shards, so nothing is scanned"
    )
    return Finding(
        kind=FindingKind.INDEX,
        message=message,
        file=index.path.name,
        count=max(len(others), 1),
        hint="convert such shards, mend the index, or set scan.use_safetensors_index_json to false",
    )
