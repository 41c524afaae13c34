"""Which processes never hear Ctrl-C, so that only the command itself speaks of it?"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back from this thread; processes and threads started meanwhile never hear it."""
    resource_tracker.ensure_running()  # else the first process starts it, which undoes the below
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
