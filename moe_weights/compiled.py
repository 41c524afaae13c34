"""How kernels are compiled: by Numba, without the GIL, kept on disk between runs.

Stands above the rooms, so that `measure`, `quantize` and `decode` compile alike without knowing
each other. Floating-point arithmetic stays exactly as written: nothing is reassociated or
contracted, so that every machine computes the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba

_NUMBA: Any = numba  # its types are too narrow for a decorator that keeps a function's own
_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent
_ROOMS_WITH_KERNELS = ("measure", "quantize", "decode")
# Workers import kernels when they need them, several at once; Numba has one setting for all.
_DECLARING = threading.Lock()


def kernel(function: _Function) -> _Function:
    """Compile a function on its first call; it must not touch Python objects."""
    return _compile(function, inline="never")


def inlined(function: _Function) -> _Function:
    """Compile a function into every kernel that calls it."""
    return _compile(function, inline="always")


def _compile(function: _Function, *, inline: str) -> _Function:
    folder = cache_folder()
    with _cached_in(folder):
        compiled: _Function = _NUMBA.njit(
            nogil=True, error_model="numpy", inline=inline, cache=folder is not None
        )(function)
    return compiled


@lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """Return where machine code is kept: a folder for exactly these sources, or None.

    Numba itself forgets a kernel when its own file changes, and keeps it when another file changes
    whose functions were compiled into it, or this file with its compiler options. The folder's
    name is a digest of all of them.
    """
    name = f"moe_weights-kernels-{_sources_digest()}"
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    for parent in (Path(given) if given else _PACKAGE / "__pycache__", home):
        with contextlib.suppress(OSError, RuntimeError):  # the latter of a user without a home
            folder = parent.expanduser() / name
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    return None


def _sources_digest() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(path for room in _ROOMS_WITH_KERNELS for path in _sources(room)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(room: str) -> list[Path]:
    return list((_PACKAGE / room).glob("*.py"))


@contextlib.contextmanager
def _cached_in(folder: Path | None) -> Iterator[None]:
    """Have Numba keep what is declared meanwhile in a folder; other packages keep theirs."""
    with _DECLARING:
        before = _NUMBA.config.CACHE_DIR
        _NUMBA.config.CACHE_DIR = before if folder is None else str(folder)
        try:
            yield
        finally:
            _NUMBA.config.CACHE_DIR = before
