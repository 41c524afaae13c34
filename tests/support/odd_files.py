"""What lies in place of a file and is none: pipes, sockets, devices, folders, links to nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType


def make_pipe(path: Path) -> None:
    """Make a named pipe that nobody writes to."""
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    """Make a socket that nobody listens on; its path may be longer than a socket's address."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    """Make a link to a device that never ends."""
    path.symlink_to("/dev/zero")


def make_dangling_link(path: Path) -> None:
    """Make a link to nothing."""
    path.symlink_to(path.with_name("gone"))


NOT_FILES: dict[str, Callable[[Path], None]] = {
    "it is a named pipe and no regular file": make_pipe,
    "it is a socket and no regular file": make_socket,
    "it is a device and no regular file": make_device,
}


@contextlib.contextmanager
def no_waiting(seconds: int = 10) -> Iterator[None]:
    """End what waits for a pipe with a TimeoutError."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
