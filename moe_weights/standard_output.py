"""What becomes of a command whose output nobody can take: a full disk, a closed pipe?"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from moe_weights.errors import OutputError

# What writing to a stream fails with; files are opened by name, and their errors have it.
_OF_STREAMS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EIO})


@contextlib.contextmanager
def stdout_errors() -> Iterator[None]:
    """Turn a failure to write to standard output into the error of any other output."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _OF_STREAMS:
            raise
        # What is still in its buffer would fail once more when the interpreter ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        is_gone = error.errno == errno.EPIPE
        advice = "let its reader run to the end" if is_gone else "free some space"
        raise OutputError(
            f"cannot write to standard output: {error.strerror or error}; {advice} or send it "
            "elsewhere"
        ) from error


def replace_closed_stdout() -> None:
    """Let a command speak to nobody where who started it closed standard output."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 # for good
