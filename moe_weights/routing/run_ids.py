"""Which run ids are paths below the folder of bundles, on every system?"""

from __future__ import annotations

import unicodedata
from pathlib import Path, PureWindowsPath

from moe_weights.errors import UsageError

UNFINISHED_PREFIX = ".run-bundle."  # of folders in which a bundle grows or is being written
_MAX_SEGMENT_BYTES = 200  # file systems stop at 255; temporary siblings add to the name
_ADVICE = 'use segments of ordinary names joined by /, for example "group/run-001"'


def check_run_id(run_id: str) -> None:
    r"""Refuse a run id that is not a plain path of its own below any folder.

    Args:
        run_id: Segments joined by `/`; `group/run-001` nests.

    Raises:
        UsageError: a backslash, a Windows drive or root, a leading `/`, an empty, `.` or `..`
            segment, one that begins as unfinished bundles do, a control character, or a segment
            too long for a file system.
    """
    fault = _path_fault(run_id)
    if fault:
        shown = run_id if len(run_id) <= 100 else f"{run_id[:100]}…"
        raise UsageError(f"run_id {shown!r} {fault}; {_ADVICE}")


def bundle_path(root_dir: Path, run_id: str) -> Path:
    """Return the folder of a bundle, `root_dir / run_id`.

    Raises:
        UsageError: see `check_run_id`.
    """
    check_run_id(run_id)
    return root_dir / run_id


def is_named_after(run_dir: Path, run_id: str) -> bool:
    """Whether a folder's last segments are those of the run id."""
    segments = tuple(run_id.split("/"))
    return run_dir.absolute().parts[-len(segments) :] == segments


def _path_fault(run_id: str) -> str | None:
    if "\\" in run_id:
        return "has a backslash"
    if run_id.startswith("/"):
        return "starts with /"
    windows = PureWindowsPath(run_id)
    if windows.drive or windows.root:
        return "has a drive"
    for segment in run_id.split("/"):
        if segment in {"", ".", ".."}:
            return f"has the segment {segment!r}"
        if segment.startswith(UNFINISHED_PREFIX):
            return f"has a segment that begins with {UNFINISHED_PREFIX}, as unfinished bundles do"
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in segment):
            return "has a control character"
        if len(segment.encode("utf-8")) > _MAX_SEGMENT_BYTES:
            return f"has a segment of more than {_MAX_SEGMENT_BYTES} bytes"
    return None
