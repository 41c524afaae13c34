"""How much memory the process has taken, and who may take more."""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

DEFAULT_MAX_MEMORY = 2**30
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_NBYTES = 4 * 2**20
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*$", re.IGNORECASE)


class MemoryBudget:
    """Bytes that the workers of one process share; who asks for more waits."""

    def __init__(self, nbytes: int) -> None:
        """Nothing is taken yet.

        Args:
            nbytes: All there is.
        """
        self._nbytes = nbytes
        self._left = nbytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, nbytes: int) -> Iterator[None]:
        """Hold bytes while the block runs; waits until they are free.

        Args:
            nbytes: More than there is at all is held alone.
        """
        wanted = min(nbytes, self._nbytes)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= wanted)
            self._left -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()


def give_back_large_buffers() -> None:
    """Have the C library return freed buffers of some MiB to the system at once.

    It would keep them per thread for later, which no ceiling could count. Only glibc is told; other
    libraries do so anyway or cannot be asked.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_NBYTES)


def resident_nbytes() -> int:
    """Return the physical memory that this process holds now; its peak where only that is known."""
    return _status_nbytes("VmRSS") or _peak_by_usage()


def peak_resident_nbytes() -> int:
    """Return the most physical memory that this process ever held."""
    return _status_nbytes("VmHWM") or _peak_by_usage()


def parse_size(text: str) -> int:
    """Return bytes from `1GiB`, `512 MB`, `2g` or `1073741824`; all units are powers of 1024.

    Raises:
        ValueError: it is no size, zero, or beyond all numbers.
    """
    match = _SIZE.match(text)
    size = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    nbytes = int(size) if math.isfinite(size) else 0
    if not nbytes:
        raise ValueError(f"{text!r} is no size; write for example 2GiB, 512MiB or 1073741824")
    return nbytes


def _status_nbytes(key: str) -> int:
    """Read Linux's own account, which starts anew with each program, unlike getrusage's."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _peak_by_usage() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
