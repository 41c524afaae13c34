"""How bytes of a checkpoint file are fetched, and how a failure to do so is told.

Every reader of this room opens files here, so a missing permission, a vanished file or a short read
has one message.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_weights.errors import CheckpointError

_MAX_PROBLEMS_SHOWN = 20
_MAX_READ_NBYTES = 1 << 30  # one pread beyond 2 GiB is refused (macOS) or cut short (Linux)
_LFS_POINTER_START = b"version https://git-lfs.github.com/spec/"
LFS_POINTER_CAUSE = (
    "it is a git-LFS pointer, not the file itself; run `git lfs pull` in the model directory"
)


@contextlib.contextmanager
def open_descriptor(path: Path, file: str) -> Iterator[int]:
    """Open a checkpoint file for `pread`.

    Args:
        path: Where the file lies.
        file: Its name in messages, relative to the model directory.

    Yields:
        A file descriptor, closed on exit.

    Raises:
        CheckpointError: the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _read_error(file, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def stat_descriptor(descriptor: int, file: str) -> os.stat_result:
    """Return the status of an open file.

    Raises:
        CheckpointError: the file system refuses.
    """
    try:
        return os.fstat(descriptor)
    except OSError as error:
        raise _read_error(file, error) from error


def read_range(descriptor: int, offset: int, nbytes: int, file: str) -> bytes:
    """Read exactly `nbytes` bytes from `offset`.

    Args:
        descriptor: From `open_descriptor`.
        offset: First byte, from the start of the file.
        nbytes: How many; the caller has made sure that the file is that long.
        file: Name in messages.

    Raises:
        CheckpointError: the file ends earlier, so it changed meanwhile, or cannot be read.
    """
    parts: list[bytes] = []
    position, end = offset, offset + nbytes
    while position < end:
        try:
            part = os.pread(descriptor, min(end - position, _MAX_READ_NBYTES), position)
        except OSError as error:
            raise _read_error(file, error) from error
        if not part:
            raise _too_short(file, offset, end, position)
        parts.append(part)
        position += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_range_into(descriptor: int, offset: int, target: memoryview, file: str) -> None:
    """Fill `target`, a view of bytes, from `offset` on.

    Args:
        descriptor: From `open_descriptor`.
        offset: First byte, from the start of the file.
        target: Where the bytes go.
        file: Name in messages.

    Raises:
        CheckpointError: the file ends earlier, so it changed meanwhile, or cannot be read.
    """
    filled = 0
    while filled < target.nbytes:
        wanted = target[filled : filled + _MAX_READ_NBYTES]
        try:
            count = _pread_into(descriptor, wanted, offset + filled)
        except OSError as error:
            raise _read_error(file, error) from error
        if not count:
            raise _too_short(file, offset, offset + target.nbytes, offset + filled)
        filled += count


def is_readable_file(path: Path) -> bool:
    """Tell whether a regular file, or a link to one, lies at `path`."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have, a folder that may not be entered
        return False


def is_link(path: Path) -> bool:
    """Tell whether a symbolic link lies at `path`, wherever it leads."""
    try:
        return path.is_symlink()
    except OSError:  # a folder that may not be entered
        return False


def what_lies_at(path: Path) -> str:
    """Say what lies at a path that `is_readable_file` denies; "" for nothing at all."""
    try:
        return "a folder" if stat.S_ISDIR(path.stat().st_mode) else "no regular file"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "a dangling link" if is_link(path) else ""
    except OSError as error:
        return f"a file out of reach ({error.strerror or error})"


def is_lfs_pointer(head: bytes) -> bool:
    """Tell whether a file that begins with `head` is the text that git-LFS puts in its place."""
    return head.startswith(_LFS_POINTER_START)


def malformed_file_error(file: str, problems: Sequence[str], advice: str) -> CheckpointError:
    """Build the one error that tells everything wrong with a file.

    Args:
        file: Name of the file, relative to the model directory.
        problems: At least one; beyond 20 only their number is told.
        advice: What a person can do about them.
    """
    count = len(problems)
    lines = [f"{file}: {count} problem{'s' if count != 1 else ''}"]
    lines += [f"  {problem}" for problem in problems[:_MAX_PROBLEMS_SHOWN]]
    if count > _MAX_PROBLEMS_SHOWN:
        lines.append(f"  ... and {count - _MAX_PROBLEMS_SHOWN} more")
    lines.append(f"  how to fix: {advice}")
    return CheckpointError("\n".join(lines))


def _pread_into(descriptor: int, target: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [target], offset)
    part = os.pread(descriptor, target.nbytes, offset)  # macOS: one copy more
    target[: len(part)] = part
    return len(part)


def _too_short(file: str, start: int, stop: int, end_of_file: int) -> CheckpointError:
    return CheckpointError(
        f"{file}: bytes {start} to {stop} were asked for, but it ends at byte {end_of_file}; "
        "the file changed while it was read: let its writer finish, then run again"
    )


def _read_error(file: str, error: OSError) -> CheckpointError:
    cause = error.strerror or str(error)
    return CheckpointError(
        f"cannot read {file}: {cause}; check that the file is there and that you may read it"
    )
