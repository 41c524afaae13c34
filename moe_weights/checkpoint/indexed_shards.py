"""Which of the shards that an index names are there, and what lies beside and below them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moe_weights.checkpoint.file_access import is_readable_file, what_lies_at
from moe_weights.checkpoint.file_names import escape_name
from moe_weights.checkpoint.folder_walk import look_below
from moe_weights.checkpoint.shard_index import ShardIndex
from moe_weights.errors import ShardIndexError
from moe_weights.findings import Finding, FindingKind, list_some

_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedShards:
    """The shards of an index, held against its folder.

    Attributes:
        expected: Shards with an allowed suffix, sorted.
        missing: Those of them that are no readable files, sorted.
        present: The others, sorted.
        extra_on_disk: `.safetensors` files beside the index that it does not name, sorted.
        extra_not_read: Other files with an allowed suffix that it does not name, sorted: those in
            subfolders that are not hidden, and those beside it with another suffix.
        findings: What lies in the place of a shard; shards that are not expected, or that the index
            names none; subfolders that could not be looked into.
    """

    expected: tuple[str, ...]
    missing: tuple[str, ...]
    present: tuple[str, ...]
    extra_on_disk: tuple[str, ...]
    extra_not_read: tuple[str, ...]
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
    places = {file: what_lies_at(root / file) for file in missing}
    findings = [_in_its_place(file, what) for file, what in places.items() if what]
    if missing and strict:
        causes = "".join(f"\n  {finding.message}" for finding in findings)
        raise ShardIndexError(
            f"[index] missing shard(s) referenced by index: {list_some(list(missing))}{causes}\n"
            "  how to fix: complete the download or set scan.strict_index to false"
        )
    others = sorted(set(named) - set(expected))
    if others or not named:
        findings.append(_not_scanned(index, others))
    # Folders that start with a dot are what programs keep for themselves: downloads, histories.
    below = look_below(root, (*extensions, _SUFFIX), enter_hidden=False)
    with_shards = {str(folder) for file in named for folder in PurePosixPath(file).parents[:-1]}
    findings += [f for f in below.folders_left_out if f.file not in with_shards]
    extra = {PurePosixPath(escape_name(file)) for file in set(below.files) - set(named)}
    beside = {file for file in extra if file.suffix == _SUFFIX and len(file.parts) == 1}
    not_read = {file for file in extra - beside if file.suffix in extensions}
    return IndexedShards(
        expected=expected,
        missing=missing,
        present=tuple(sorted(set(expected) - set(missing))),
        extra_on_disk=tuple(sorted(map(str, beside))),
        extra_not_read=tuple(sorted(map(str, not_read))),
        findings=tuple(findings),
    )


def _in_its_place(file: str, what: str) -> Finding:
    return Finding(
        kind=FindingKind.SCAN,
        message=f"[scan] shard named by the index is {what}: {file}",
        file=file,
        hint="put the shard itself there, where you may read it",
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
