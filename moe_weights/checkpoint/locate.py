"""Which files of a model path are scanned, and why these?

1. A file is scanned alone; a directory by its shard index where a usable one lies in it, else by a
   recursive walk.
2. Strictness about the index is decided here, before any shard is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from moe_weights.checkpoint.file_access import is_readable_file
from moe_weights.checkpoint.shard_index import IndexState, ShardIndex, search_shard_index
from moe_weights.errors import CheckpointError, ShardIndexError, UsageError
from moe_weights.findings import Finding, FindingKind, list_some

ModelPathKind: TypeAlias = Literal["file", "dir"]
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
        UsageError: the model path is empty, missing or a file with another suffix, or strictness is
            asked for while the search for an index is off.
        ShardIndexError: `strict_index` is not satisfied.
        CheckpointError: the model directory cannot be listed.
    """
    if strict_index and not use_index:
        raise UsageError(
            "strict_index requires use_safetensors_index_json=true\n"
            "  how to fix: set scan.use_safetensors_index_json to true or scan.strict_index to "
            "false"
        )
    path = _absolute_path(model_path)
    kind = _model_path_kind(path, extensions)
    root = path if kind == "dir" else path.parent
    if kind == "dir" or use_index:
        _check_listable(root)
    state = (
        search_shard_index(root, is_usable=kind == "dir")
        if use_index
        else IndexState(status="disabled")
    )
    if strict_index and not state.parsed:
        raise ShardIndexError(_no_index_message(state, root))
    findings = [_unparsed_index_finding(state)] if state.status == "error" else []
    if kind == "file":
        return CheckpointFiles(
            model_path=path,
            root=root,
            kind=kind,
            scan_mode="walk",
            files=(path.name,),
            index=state,
            index_ignored_due_to_file=state.parsed,
            findings=tuple(findings),
        )
    if state.index is not None:
        return _locate_by_index(
            path,
            state,
            state.index,
            extensions=extensions,
            strict_index=strict_index,
            max_files=max_files,
        )
    files = sorted(_walk(root, extensions, findings), key=lambda file: PurePosixPath(file).parts)
    if not files:
        findings.append(
            Finding(
                kind=FindingKind.SCAN,
                message=f"[scan] no file with suffix {' or '.join(extensions)} in {path}",
                hint="check model_path and scan.extensions; linked folders are not entered",
            )
        )
    return CheckpointFiles(
        model_path=path,
        root=root,
        kind=kind,
        scan_mode="walk",
        files=tuple(files[:max_files]),
        index=state,
        not_scanned_due_to_max_files=() if max_files is None else tuple(files[max_files:]),
        findings=tuple(findings),
    )


def index_ignored_line(files: CheckpointFiles) -> str | None:
    """Return the console line that says that an index lies beside the scanned file, or None."""
    if not files.index_ignored_due_to_file:
        return None
    return (
        f"[index] index found at {files.index.index_path}; but model_path is a file; scanning only "
        "the anchor file. To scan the full indexed shard set, pass the model directory instead."
    )


def _absolute_path(model_path: str | Path) -> Path:
    if not str(model_path).strip():
        raise UsageError(
            "model_path is empty\n"
            "  how to fix: set model_path in analysis_config.json or pass --model-path"
        )
    try:
        return Path(model_path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"model_path cannot be expanded: {model_path} ({error})") from error


def _model_path_kind(path: Path, extensions: Sequence[str]) -> ModelPathKind:
    try:
        if path.is_dir():
            return "dir"
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise UsageError(f"model_path cannot be reached: {path} ({error})") from error
    if not is_file:
        raise UsageError(
            f"model_path does not exist: {path}\n"
            "  how to fix: set model_path in analysis_config.json or pass --model-path"
        )
    if path.suffix not in extensions:
        raise UsageError(
            f'model_path is a file whose suffix "{path.suffix}" is not in scan.extensions '
            f"({', '.join(extensions)}): {path}\n"
            "  how to fix: pass the model directory or a file with one of these suffixes"
        )
    return "file"


def _check_listable(root: Path) -> None:
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        raise CheckpointError(
            f"cannot list {root}: {error.strerror or error}; make the folder readable"
        ) from error


def _unparsed_index_finding(state: IndexState) -> Finding:
    return Finding(
        kind=FindingKind.INDEX,
        message=f"[index] failed to parse index {state.index_path}: {state.error}",
        file="" if state.index_path is None else state.index_path.name,
        hint="mend or remove the index; the files were chosen without it",
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


def _locate_by_index(
    path: Path,
    state: IndexState,
    index: ShardIndex,
    *,
    extensions: Sequence[str],
    strict_index: bool,
    max_files: int | None,
) -> CheckpointFiles:
    expected = tuple(file for file in index.shards if PurePosixPath(file).suffix in extensions)
    missing = tuple(file for file in expected if not is_readable_file(path / file))
    findings = tuple(_unreadable_finding(path, file) for file in missing if _is_there(path / file))
    if missing and strict_index:
        causes = "".join(f"\n  {finding.message}" for finding in findings)
        raise ShardIndexError(
            f"[index] missing shard(s) referenced by index: {list_some(list(missing))}{causes}\n"
            "  how to fix: complete the download or set scan.strict_index to false"
        )
    present = tuple(file for file in expected if file not in set(missing))
    named = set(index.shards)
    extra = (
        entry.name
        for entry in path.glob("*.safetensors")
        if entry.name not in named and is_readable_file(entry)
    )
    return CheckpointFiles(
        model_path=path,
        root=path,
        kind="dir",
        scan_mode="index",
        files=present[:max_files],
        index=state,
        expected_shards=expected,
        missing_shards=missing,
        not_scanned_due_to_max_files=() if max_files is None else present[max_files:],
        extra_safetensors_files_on_disk=tuple(sorted(extra)),
        findings=findings,
    )


def _is_there(path: Path) -> bool:
    try:
        return path.is_symlink() or path.exists()
    except OSError:
        return False  # a name that the file system refuses, such as one of 300 letters


def _unreadable_finding(root: Path, file: str) -> Finding:
    path = root / file
    what = "a folder" if path.is_dir() else "a dangling link" if path.is_symlink() else "no file"
    return Finding(
        kind=FindingKind.SCAN,
        message=f"[scan] shard named by the index is {what}: {file}",
        file=file,
        hint="put the shard itself there",
    )


def _walk(root: Path, extensions: Sequence[str], findings: list[Finding]) -> Iterator[str]:
    def note_unlisted(error: OSError) -> None:
        folder = Path(error.filename).relative_to(root).as_posix()
        findings.append(
            Finding(
                kind=FindingKind.SCAN,
                message=f"[scan] folder cannot be listed: {folder}: {error.strerror}",
                file=folder,
                hint="make it readable if it holds shards",
            )
        )

    for parent, folders, names in os.walk(root, onerror=note_unlisted):
        folders.sort()
        for name in sorted(names):
            entry = Path(parent) / name
            if entry.suffix not in extensions:
                continue
            file = entry.relative_to(root).as_posix()
            if is_readable_file(entry):
                yield _encodable(file)
            else:
                cause = "dangling link" if entry.is_symlink() else "no regular file"
                findings.append(
                    Finding(
                        kind=FindingKind.SCAN,
                        message=f"[scan] {cause} skipped: {file}",
                        file=file,
                    )
                )


def _encodable(file: str) -> str:
    try:
        file.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{file!r}: the file name is not UTF-8, so no table can hold it; rename the file"
        ) from error
    return file
