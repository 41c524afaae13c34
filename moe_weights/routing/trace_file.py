"""How do lines reach a file so that a crash leaves whole lines and at most one torn one?

The lock on the file dies with its process, so that none can be left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from moe_weights.atomic_files import open_regular_file
from moe_weights.errors import OutputError, UsageError

_BLOCK_BYTES = 65536


class TraceFile:
    """A file that only grows, written by one process at a time.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        """Open and lock the file; it is made when missing.

        Args:
            path: The file; its folder exists.
            durable: Flush every line to the disk.

        Raises:
            UsageError: another process has it.
            OSError: it cannot be opened, or is no regular file.
        """
        self.path = path
        self._durable = durable
        if os.path.lexists(path):
            open_regular_file(path).close()
        # Unbuffered: a line that was written is the system's, whatever happens to the process.
        self._stream = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another process may have promoted or removed the file.
            is_ours = path.exists() and os.path.samestat(
                path.stat(), os.fstat(self._stream.fileno())
            )
        except BlockingIOError:
            is_ours = False
        except OSError:
            self._stream.close()
            raise
        if not is_ours:
            self._stream.close()
            raise UsageError(
                f"{path} is written by another process; wait for it or use another run_id"
            )

    def append(self, line: bytes) -> None:
        """Write a line at the end, whole or not at all.

        Raises:
            OutputError: it cannot be written; the file is as it was before.
        """
        end = self._stream.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:  # a full disk takes a part, then refuses
                rest = rest[self._stream.write(rest) :]
            if self._durable:
                os.fsync(self._stream.fileno())
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._stream.truncate(end)
            if not isinstance(error, OSError):
                raise  # Ctrl-C, after which a notebook may go on with the next token
            cause = error.strerror or str(error)
            raise OutputError(
                f"cannot append to {self.path}: {cause}; the file is as it was before"
            ) from error

    def clear(self) -> None:
        """Make the file empty."""
        self._stream.truncate(0)

    def count_lines(self) -> int:
        """Return how many whole lines there are."""
        self._stream.seek(0)
        return sum(
            block.count(b"\n") for block in iter(lambda: self._stream.read(_BLOCK_BYTES), b"")
        )

    def count_unfinished_bytes(self) -> int:
        """Return how many bytes follow the last newline."""
        size = self._stream.seek(0, os.SEEK_END)
        return size - self._end_of_last_line(size)

    def cut_off_unfinished_line(self) -> int:
        """Remove what follows the last newline; return how many bytes that were."""
        n_bytes = self.count_unfinished_bytes()
        self._stream.truncate(self._stream.seek(0, os.SEEK_END) - n_bytes)
        return n_bytes

    def close(self) -> None:
        """Close the file and give the lock back."""
        self._stream.close()

    def _end_of_last_line(self, size: int) -> int:
        position = size
        while position > 0:
            start = max(0, position - _BLOCK_BYTES)
            self._stream.seek(start)
            newline = self._stream.read(position - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
        return 0
