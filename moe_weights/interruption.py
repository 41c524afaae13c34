"""How does Ctrl-C end a command, even while packages are still being loaded?

An exception in the middle of an import may be swallowed, or turned into another one, by whatever is
imported; in a call from compiled code it is always swallowed. So the process ends there and then:
nothing is lost by it, as a run survives even `kill -9`. Anywhere else Ctrl-C raises
KeyboardInterrupt as ever.

This module loads next to nothing: what is loaded before it cannot be interrupted cleanly.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

TYPE_CHECKING = False  # typing's own takes longer to load than all else here
if TYPE_CHECKING:
    from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
TOLD = (
    "interrupted; finished files are whole. The same command, run again, goes on from what is "
    "finished or says what it finds there"
)
_IMPORTER = "<frozen importlib._bootstrap>"


def end_cleanly_when_interrupted() -> None:
    """Have Ctrl-C end this process cleanly from now on; where it is ignored it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _end_if_interrupted


def ignore_interruption() -> None:
    """Let the process end in its own way: the command is done and has said so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        _end()
    signal.default_int_handler(number, frame)


def _end_if_interrupted(swallowed: sys.UnraisableHookArgs) -> None:
    """Take the place of the interpreter's note about an exception that nobody will hear of."""
    if issubclass(swallowed.exc_type, KeyboardInterrupt):
        _end()
    sys.__unraisablehook__(swallowed)


def _end() -> NoReturn:
    try:
        sys.stdout.flush()
        os.write(2, f"{TOLD}\n".encode())
    finally:  # whoever read what is told may have gone
        os._exit(INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTER:
            return True
        frame = frame.f_back
    return False
