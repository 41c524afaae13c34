"""Which shards lie in a model directory and its subfolders?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_weights.checkpoint.file_access import is_link, is_readable_file, what_lies_at
from moe_weights.checkpoint.file_names import escape_name, is_utf8
from moe_weights.checkpoint.shard_index import INDEX_SUFFIX
from moe_weights.errors import CheckpointError
from moe_weights.findings import Finding, FindingKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkedFolder:
    """What a walk came across.

    Attributes:
        files: Files with an allowed suffix, relative to the folder with `/`, in path order.
        inner_indexes: Shard indexes in subfolders, likewise.
        folders_left_out: Folders that may hold such files and were not entered.
        files_left_out: What has such a suffix and is no file to read.
    """

    files: tuple[str, ...]
    inner_indexes: tuple[str, ...]
    folders_left_out: tuple[Finding, ...]
    files_left_out: tuple[Finding, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that was left out."""
        return (*self.folders_left_out, *self.files_left_out)


def walk_folder(root: Path, extensions: Sequence[str]) -> WalkedFolder:
    """Find the files to scan; see `look_below`.

    Raises:
        CheckpointError: a file's name is not UTF-8.
    """
    walked = look_below(root, extensions)
    for file in walked.files:
        _check_utf8(file)
    if walked.files:
        return walked
    text = f"no file with suffix {' or '.join(extensions)} in {root}"
    nothing = _left_out(text, "", "check model_path and scan.extensions")
    return replace(walked, files_left_out=(*walked.files_left_out, nothing))


def look_below(root: Path, extensions: Sequence[str], *, enter_hidden: bool = True) -> WalkedFolder:
    """Look for files recursively; linked folders are not entered, they may lead in circles.

    Args:
        root: A folder that can be listed.
        extensions: Allowed suffixes with their dot, case-sensitive.
        enter_hidden: Look into folders whose name starts with a dot, too.
    """
    files: list[str] = []
    inner_indexes: list[str] = []
    folders_left_out: list[Finding] = []
    files_left_out: list[Finding] = []

    def note_unlisted(error: OSError) -> None:
        folder = Path(error.filename).relative_to(root).as_posix()
        text = f"folder cannot be listed: {escape_name(folder)}: {error.strerror}"
        folders_left_out.append(_left_out(text, folder, "make it readable if it holds shards"))

    for parent, folders, names in os.walk(root, onerror=note_unlisted):
        folders[:] = sorted(name for name in folders if enter_hidden or not name.startswith("."))
        for name in folders:
            entry = Path(parent) / name
            if is_link(entry):
                folder = entry.relative_to(root).as_posix()
                hint = "if it holds shards, link to each of them or point model_path there"
                folders_left_out.append(
                    _left_out(f"linked folder not entered: {escape_name(folder)}", folder, hint)
                )
        for name in sorted(names):
            entry = Path(parent) / name
            file = entry.relative_to(root).as_posix()
            if name.endswith(INDEX_SUFFIX) and file != name:
                inner_indexes.append(file)
            if entry.suffix not in extensions:
                continue
            if is_readable_file(entry):
                files.append(file)
            else:
                what = what_lies_at(entry).removeprefix("a ")
                files_left_out.append(_left_out(f"{what} skipped: {escape_name(file)}", file))
    return WalkedFolder(
        files=_in_path_order(files),
        inner_indexes=_in_path_order(inner_indexes),
        folders_left_out=tuple(folders_left_out),
        files_left_out=tuple(files_left_out),
    )


def _in_path_order(files: list[str]) -> tuple[str, ...]:
    return tuple(sorted(files, key=lambda file: file.split("/")))


def _left_out(text: str, file: str, hint: str = "") -> Finding:
    return Finding(
        kind=FindingKind.SCAN, message=f"[scan] {text}", file=escape_name(file), hint=hint
    )


def _check_utf8(file: str) -> None:
    if not is_utf8(file):
        raise CheckpointError(
            f"{file!r}: the file name is not UTF-8, so no table can hold it; rename the file"
        )
