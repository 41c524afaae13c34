"""How kernels are compiled: by Numba, without the GIL, kept on disk between runs.

Stands above the rooms, so that `measure`, `quantize` and `decode` compile alike without knowing
each other. Floating-point arithmetic stays exactly as written: nothing is reassociated or
contracted, so that every machine computes the same bits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
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

_LOG = logging.getLogger(__name__)
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
    if folder is not None:
        _make_safe(compiled, folder)
    return compiled


def _make_safe(compiled: Any, folder: Path) -> None:
    """Have a kernel use no machine code but its own, and none that was kept badly.

    Numba numbers the files of a function's machine code without a lock: two processes that compile
    it at once, for other types, take one number for both. It then runs the code of one type on
    arrays of the other. It also fails with files that a crash left empty, and on a full disk.

    Args:
        compiled: What Numba made of a function.
        folder: Where it keeps machine code.
    """
    cache = compiled._cache
    load, save = cache.load_overload, cache.save_overload

    def load_own(signature: Any, context: Any) -> Any:
        try:
            found = load(signature, context)
            if found is None or found.signature.args == _argument_types(signature):
                return found
        except Exception as error:
            # Whatever unpickling makes of damaged bytes.
            _LOG.info("%s: machine code cannot be read: %s", compiled, error)
        with contextlib.suppress(OSError), _locked(folder):
            cache.flush()  # else the other types would find this one's code
        return None

    def save_alone(signature: Any, result: Any) -> None:
        try:
            with _locked(folder):
                save(signature, result)
        except OSError as error:
            _LOG.info("%s: machine code cannot be kept: %s", compiled, error)

    cache.load_overload, cache.save_overload = load_own, save_alone


def _argument_types(signature: Any) -> tuple[Any, ...]:
    """Return the types of a signature, or of the plain tuple that Numba passes in its place."""
    return tuple(getattr(signature, "args", signature))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("ab") as stream:
        with contextlib.suppress(OSError):  # a file system without locks: `load_own` still looks
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        yield


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
