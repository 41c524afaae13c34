"""How files of a run directory come to be: whole or not at all, by one process at a time.

A write goes to a temporary sibling, is flushed to disk, and is then renamed over its target, so a
reader sees the old file or the new one. Names of temporary siblings contain `.tmp-`; no artifact's
name does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeAlias

from moe_weights.errors import OutputError, UsageError

JsonValue: TypeAlias = (
    "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)

_TEMPORARY_NAME = re.compile(r"^\..+\.tmp-\d+(?:-\d+)?$")
_WRITE_NUMBERS = itertools.count()  # two threads may write one target at the same time
_KINDS_OF_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# What file systems answer that cannot flush a folder; the rename is as durable as they make it.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary sibling to write to; on success it replaces `target`, else it is removed.

    Args:
        target: The artifact; its folder is made when missing.

    Yields:
        The temporary path, on the same file system as `target`.

    Raises:
        OutputError: the folder or file cannot be written (read-only, disk full, ...); `target` is
            as before.
    """
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{next(_WRITE_NUMBERS)}")
    _refuse_special(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        _remove_quietly(temporary)
        if isinstance(error, OutputError):
            raise
        raise OutputError(_write_failure_message(target, error)) from error
    except BaseException:
        _remove_quietly(temporary)
        raise


def write_text_atomic(target: Path, text: str) -> None:
    """Write `text` as UTF-8 to `target`, whole or not at all.

    Raises:
        OutputError: see `atomic_path`.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def to_json(value: JsonValue) -> str:
    """Return `value` as JSON text: sorted keys, indent 2, final newline; NaN is refused.

    Raises:
        ValueError: a float is not finite.
    """
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_atomic(target: Path, value: JsonValue) -> None:
    """Write `to_json(value)` to `target`, whole or not at all.

    Raises:
        OutputError: see `atomic_path`.
    """
    write_text_atomic(target, to_json(value))


def publish_folder(source: Path, target: Path) -> None:
    """Make a finished folder appear under its name, with all its files, or not at all.

    Args:
        source: A folder on the same file system whose files are closed; they are flushed to disk.
        target: Its name from now on; must not exist.

    Raises:
        FileExistsError: `target` exists; `source` is as before.
        OutputError: the files cannot be flushed or the folder cannot be renamed.
    """
    try:
        for path in source.iterdir():
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
        _sync_folder(source)
        if os.path.lexists(target):  # a rename would replace an empty folder
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise OutputError(_write_failure_message(target, error)) from error


def remove_file(target: Path) -> None:
    """Remove `target` if it exists.

    Raises:
        OutputError: it exists and cannot be removed.
    """
    try:
        target.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(_write_failure_message(target, error, verb="remove")) from error


def open_regular_file(path: Path) -> IO[bytes]:
    """Open a file for reading, but nothing that is no file: a named pipe would wait for ever.

    Args:
        path: A file, or a link to one.

    Raises:
        OSError: as `Path.open`, or it is a folder, a pipe, a socket or a device.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        what = _KINDS_OF_FILES.get(kind, "something else")
        raise OSError(errno.EINVAL, f"it is {what} and no regular file", str(path))
    return path.open("rb")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_writable(folders: Iterable[Path]) -> None:
    """Refuse folders that cannot be written to, before any work is done for them.

    Args:
        folders: Those that do not exist yet are made by the first write.

    Raises:
        OutputError: naming all of them.
    """
    closed = [
        str(folder) for folder in folders if folder.exists() and not os.access(folder, os.W_OK)
    ]
    if closed:
        raise OutputError(
            f"cannot write to {', '.join(closed)}; make the run directory writable or use another "
            "--root; nothing was read or written"
        )


class RunLock:
    """An advisory lock on a run directory; it dies with its process, so none can be left behind.

    Whoever takes the lock also removes temporary siblings that a killed run left.
    """

    def __init__(self, lock_path: Path) -> None:
        """Prepare the lock; nothing is touched before `__enter__`.

        Args:
            lock_path: A file used for nothing else; its grandparent is the run directory that is
                cleaned.
        """
        self._lock_path = lock_path
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            UsageError: another process holds it.
            OutputError: the lock file cannot be made.
        """
        try:
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            stream = self._lock_path.open("ab")
        except OSError as error:
            raise OutputError(_write_failure_message(self._lock_path, error)) from error
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            run_path = self._lock_path.parent.parent
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise UsageError(
                    f"run directory is in use by another process: {run_path}; wait for it or "
                    "choose another --run-name; nothing was written"
                ) from error
            raise OutputError(_write_failure_message(self._lock_path, error)) from error
        self._stream = stream
        remove_temporary_siblings(self._lock_path.parent.parent)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """Give the lock back."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def remove_temporary_siblings(folder: Path) -> int:
    """Remove what killed writes left anywhere below a run; return how many files that were.

    Args:
        folder: The run directory. A run nested below it may be in use, so it is left alone.
    """
    removed = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            # Unlike Path.exists, this has an answer for a folder that may not be looked into.
            name
            for name in folders
            if not os.path.exists(Path(parent) / name / "manifest.json")  # noqa: PTH110
        ]
        for name in names:
            if _TEMPORARY_NAME.match(name):
                _remove_quietly(Path(parent) / name)
                removed += 1
    return removed


def _refuse_special(target: Path) -> None:
    """Refuse what a rename would destroy: a device such as /dev/stdout, a pipe, a socket.

    Raises:
        OutputError: it is one.
    """
    try:
        kind = stat.S_IFMT(target.stat().st_mode)
    except OSError:
        return  # nothing there, or what the write itself will tell
    # With output sent to a file, /dev/stdout is that file; the name itself would be replaced.
    if kind in _KINDS_OF_FILES or str(target.absolute().parent) in {"/dev", "/dev/fd"}:
        what = _KINDS_OF_FILES.get(kind, "no file of its own")
        raise OutputError(
            f"cannot write {target}: it is {what}, and writing would replace it; give the path of "
            "a file"
        )


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _write_failure_message(target: Path, error: OSError, *, verb: str = "write") -> str:
    cause = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        advice = "free some space and run the same command again"
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        advice = "make the run directory writable or use another --root"
    else:
        advice = "check the run directory"
    return f"cannot {verb} {target}: {cause}; {advice}; the file is as it was before"
