"""Which files of a model path are scanned, and why these?

1. A file is scanned alone; a directory by its shard index where a usable one lies in it, else by a
   recursive walk.
2. Strictness about the index is decided here, before any shard is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from moe_weights.checkpoint.file_names import escape_name, is_utf8
from moe_weights.checkpoint.folder_walk import walk_folder
from moe_weights.checkpoint.indexed_shards import find_indexed_shards
from moe_weights.checkpoint.model_path import ModelPathKind, check_listable, find_model_path
from moe_weights.checkpoint.shard_index import IndexState, search_shard_index
from moe_weights.errors import CheckpointError, ShardIndexError, UsageError
from moe_weights.findings import Finding, FindingKind, list_some

ScanMode: TypeAlias = Literal["index", "walk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """The files found under a model path.

    Attributes:
        model_path: As asked for, absolute.
        root: The model directory: `model_path`, or its folder when it is a file.
        kind: What `model_path` is.
        scan_mode: Who chose the files.
        files: Files to scan, relative to `root` with `/`, in scan order.
        index: What became of the search for an index.
        index_ignored_due_to_file: A usable index lies beside a model path that is a file.
        expected_shards: Shards with an allowed suffix that the active index names, sorted.
        missing_shards: Those of them that are no readable files, sorted.
        not_scanned_due_to_max_files: Files that would follow in scan order, cut off by `max_files`.
        extra_safetensors_files_on_disk: `.safetensors` files beside the active index that it does
            not name, sorted.
        extra_files_not_read: Other files with an allowed suffix that the active index does not
            name, beside it or in subfolders that are not hidden, sorted.
        findings: What an auditor should know about the search.
    """

    model_path: Path
    root: Path
    kind: ModelPathKind
    scan_mode: ScanMode
    files: tuple[str, ...]
    index: IndexState
    index_ignored_due_to_file: bool = False
    expected_shards: tuple[str, ...] = ()
    missing_shards: tuple[str, ...] = ()
    not_scanned_due_to_max_files: tuple[str, ...] = ()
    extra_safetensors_files_on_disk: tuple[str, ...] = ()
    extra_files_not_read: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def locate_checkpoint(
    model_path: str | Path,
    *,
    extensions: Sequence[str],
    use_index: bool,
    strict_index: bool,
    max_files: int | None,
) -> CheckpointFiles:
    """Find the files to scan; none of them is opened, only the index is read.

    Args:
        model_path: A model directory or one file of it; `~` is expanded.
        extensions: Allowed suffixes with their dot, case-sensitive.
        use_index: Look for a shard index.
        strict_index: Insist on a usable index, and on all its shards when it is active.
        max_files: Scan at most so many files; None for all.

    Returns:
        The files; possibly none, when a directory holds nothing with an allowed suffix.

    Raises:
        UsageError: the model path cannot be used, or strictness is asked for while the search for
            an index is off.
        ShardIndexError: `strict_index` is not satisfied.
        CheckpointError: the model directory cannot be listed, or a name in it is not UTF-8.
    """
    if strict_index and not use_index:
        raise UsageError(
            "strict_index requires use_safetensors_index_json=true\n"
            "  how to fix: set scan.use_safetensors_index_json to true or scan.strict_index to "
            "false"
        )
    model = find_model_path(model_path, extensions)
    if model.kind == "dir" or use_index:
        check_listable(model.root)
    state = (
        _search_index(model.root, is_usable=model.kind == "dir")
        if use_index
        else IndexState(status="disabled")
    )
    if strict_index and not state.parsed:
        raise ShardIndexError(_no_index_message(state, model.root))
    findings = [_unparsed_index_finding(state)] if state.status == "error" else []
    if model.kind == "file":
        return CheckpointFiles(
            model_path=model.path,
            root=model.root,
            kind="file",
            scan_mode="walk",
            files=(model.path.name,),
            index=state,
            index_ignored_due_to_file=state.parsed,
            findings=tuple(findings),
        )
    if state.index is not None:
        shards = find_indexed_shards(model.path, state.index, extensions, strict=strict_index)
        return CheckpointFiles(
            model_path=model.path,
            root=model.path,
            kind="dir",
            scan_mode="index",
            files=shards.present[:max_files],
            index=state,
            expected_shards=shards.expected,
            missing_shards=shards.missing,
            not_scanned_due_to_max_files=_cut_off(shards.present, max_files),
            extra_safetensors_files_on_disk=shards.extra_on_disk,
            extra_files_not_read=shards.extra_not_read,
            findings=shards.findings,
        )
    walked = walk_folder(model.path, extensions)
    if use_index and walked.inner_indexes:
        findings.append(
            _inner_indexes_finding([escape_name(file) for file in walked.inner_indexes])
        )
    return CheckpointFiles(
        model_path=model.path,
        root=model.path,
        kind="dir",
        scan_mode="walk",
        files=walked.files[:max_files],
        index=state,
        not_scanned_due_to_max_files=_cut_off(walked.files, max_files),
        findings=(*findings, *walked.findings),
    )


def index_ignored_line(files: CheckpointFiles) -> str | None:
    """Return the console line that says that an index lies beside the scanned file, or None."""
    if not files.index_ignored_due_to_file:
        return None
    return (
        f"[index] index found at {files.index.index_path}; but model_path is a file; scanning only "
        "the anchor file. To scan the full indexed shard set, pass the model directory instead."
    )


def _cut_off(files: tuple[str, ...], max_files: int | None) -> tuple[str, ...]:
    return () if max_files is None else files[max_files:]


def _search_index(root: Path, *, is_usable: bool) -> IndexState:
    state = search_shard_index(root, is_usable=is_usable)
    if state.index_path is not None and not is_utf8(state.index_path.name):
        raise CheckpointError(
            f"{state.index_path.name!r}: the name of the shard index is not UTF-8, so no log can "
            "hold it; rename the file"
        )
    return state


def _unparsed_index_finding(state: IndexState) -> Finding:
    return Finding(
        kind=FindingKind.INDEX,
        message=f"[index] failed to parse index {state.index_path}: {state.error}",
        file="" if state.index_path is None else state.index_path.name,
        hint="mend or remove the index; the files were chosen without it",
    )


def _inner_indexes_finding(files: list[str]) -> Finding:
    # A shard that they name and that is not there would be missed by nobody.
    return Finding(
        kind=FindingKind.INDEX,
        message=f"[index] indexes in subfolders are not used: {list_some(files)}",
        file=files[0] if len(files) == 1 else "",
        count=len(files),
        hint="point model_path at the folder of an index to have its shards held against it",
    )


def _no_index_message(state: IndexState, root: Path) -> str:
    cause = (
        f"no *.safetensors.index.json in {root}"
        if state.index_path is None
        else f"{state.index_path}: {state.error}"
    )
    return (
        f"strict_index requires an active index (status: {state.status})\n"
        f"  {cause}\n"
        "  how to fix: provide a usable index or set scan.strict_index to false"
    )
