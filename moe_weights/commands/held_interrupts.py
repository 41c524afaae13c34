"""Which processes never hear Ctrl-C, so that only the command itself speaks of it?"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the end; processes and threads started meanwhile never hear it.

    A signal that one thread blocks goes to another one, and Python handles it in the main thread
    all the same. So the main thread only takes note of it meanwhile, and acts on it at the end.
    """
    resource_tracker.ensure_running()  # else the first process starts it, which undoes the below
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _noted_interrupts():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and callable(handler)):  # nothing of Python's would be called, or not here
        yield
        return
    noted: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _number, frame: noted.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if noted:
            handler(signal.SIGINT, noted[0])
