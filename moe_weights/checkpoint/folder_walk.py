"""Which shards lie in a model directory and its subfolders, where no index names them?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_weights.checkpoint.file_access import is_readable_file
from moe_weights.checkpoint.file_names import escape_name, is_utf8
from moe_weights.errors import CheckpointError
from moe_weights.findings import Finding, FindingKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkedFolder:
    """What a walk came across.

    Attributes:
        files: Files with an allowed suffix, relative to the folder with `/`, in path order.
        findings: What has such a suffix or may hold such files, and was left out.
    """

    files: tuple[str, ...]
    findings: tuple[Finding, ...]


def walk_folder(root: Path, extensions: Sequence[str]) -> WalkedFolder:
    """Look for files recursively; linked folders are not entered, they may lead in circles.

    Args:
        root: A folder that can be listed.
        extensions: Allowed suffixes with their dot, case-sensitive.

    Raises:
        CheckpointError: a file's name is not UTF-8.
    """
    files: list[str] = []
    findings: list[Finding] = []

    def note_unlisted(error: OSError) -> None:
        folder = Path(error.filename).relative_to(root).as_posix()
        text = f"folder cannot be listed: {escape_name(folder)}: {error.strerror}"
        findings.append(_left_out(text, folder, "make it readable if it holds shards"))

    for parent, folders, names in os.walk(root, onerror=note_unlisted):
        folders.sort()
        for name in folders:
            entry = Path(parent) / name
            if entry.is_symlink():
                folder = entry.relative_to(root).as_posix()
                hint = "if it holds shards, link to each of them or point model_path there"
                findings.append(
                    _left_out(f"linked folder not entered: {escape_name(folder)}", folder, hint)
                )
        for name in sorted(names):
            entry = Path(parent) / name
            if entry.suffix not in extensions:
                continue
            file = entry.relative_to(root).as_posix()
            if is_readable_file(entry):
                files.append(_check_utf8(file))
            else:
                cause = "dangling link" if entry.is_symlink() else "no regular file"
                findings.append(_left_out(f"{cause} skipped: {escape_name(file)}", file))
    if not files:
        suffixes = " or ".join(extensions)
        text = f"no file with suffix {suffixes} in {root}"
        findings.append(_left_out(text, "", "check model_path and scan.extensions"))
    files.sort(key=lambda file: file.split("/"))
    return WalkedFolder(files=tuple(files), findings=tuple(findings))


def _left_out(text: str, file: str, hint: str = "") -> Finding:
    return Finding(
        kind=FindingKind.SCAN, message=f"[scan] {text}", file=escape_name(file), hint=hint
    )


def _check_utf8(file: str) -> str:
    if not is_utf8(file):
        raise CheckpointError(
            f"{file!r}: the file name is not UTF-8, so no table can hold it; rename the file"
        )
    return file
