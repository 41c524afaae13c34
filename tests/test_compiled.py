from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numba.core.caching
import numpy as np

from moe_weights import compiled


def no_home(path: Path) -> Path:
    """Do what `Path.expanduser` does for a user who has none."""
    if str(path).startswith("~"):
        raise RuntimeError("Could not determine home directory.")
    return path


def total(numbers: Any) -> float:
    """Add up numbers."""
    added = 0.0
    for number in numbers:
        added += number
    return added


class CacheFolder(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name)
        self.file = self.path / "file"
        self.file.write_text("", encoding="utf-8")

    def found(self, numba_cache: Path, user_cache: Path) -> Path | None:
        given = {"NUMBA_CACHE_DIR": str(numba_cache), "XDG_CACHE_HOME": str(user_cache)}
        with mock.patch.dict(os.environ, given):
            return compiled.cache_folder.__wrapped__()

    def test_is_the_one_that_is_asked_for(self) -> None:
        found = self.found(self.path / "asked", self.path / "user")
        assert found is not None
        self.assertEqual(found.parent, self.path / "asked")
        self.assertTrue(found.is_dir())

    def test_is_the_users_where_the_first_cannot_be_made(self) -> None:
        found = self.found(self.file, self.path / "user")
        assert found is not None
        self.assertEqual(found.parent, self.path / "user")

    def test_needs_no_home(self) -> None:
        with (
            mock.patch.dict(os.environ, {"NUMBA_CACHE_DIR": str(self.path)}),
            mock.patch.object(Path, "expanduser", no_home),
        ):
            os.environ.pop("XDG_CACHE_HOME", None)
            found = compiled.cache_folder.__wrapped__()
            assert found is not None
            self.assertEqual(found.parent, self.path)
            os.environ["NUMBA_CACHE_DIR"] = str(self.file)
            self.assertIsNone(compiled.cache_folder.__wrapped__())

    def test_is_none_where_nothing_can_be_written(self) -> None:
        self.assertIsNone(self.found(self.file, self.file))

    def test_is_another_one_for_other_kernels_or_compiler_options(self) -> None:
        def name() -> str:
            found = self.found(self.path, self.path)
            assert found is not None
            return found.name

        names = [name(), name()]
        kernels = self.path / "kernels.py"
        with mock.patch.object(compiled, "_sources", lambda _room: [kernels]):
            for text in ("a = 1", "a = 2"):
                kernels.write_text(text, encoding="utf-8")
                names.append(name())
        with mock.patch.object(compiled, "__file__", str(self.file)):
            names.append(name())
        self.assertEqual(names[0], names[1])
        self.assertEqual(len(set(names)), 4)


class KeptMachineCode(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name)
        self.enterContext(mock.patch.object(compiled, "cache_folder", return_value=self.path))

    def misses(self, *dtypes: str) -> int:
        """Run the kernel as another process would; return how often it had to be compiled."""
        kernel: Any = compiled.kernel(total)
        for dtype in dtypes:
            self.assertEqual(kernel(np.ones(8, dtype)), 8.0)
        return len(kernel.stats.cache_misses)

    def kept(self, suffix: str) -> list[Path]:
        return sorted(self.path.rglob(f"*{suffix}"))

    def test_is_found_by_the_next_process(self) -> None:
        self.assertEqual(self.misses("f4", "i4"), 2)
        self.assertEqual(self.misses("i4", "f4"), 0)

    def test_of_another_type_is_never_run(self) -> None:
        self.misses("f4", "i4")
        first, second = self.kept(".nbc")
        shutil.copyfile(first, second)  # as if two processes had given one number to both
        self.assertEqual(self.misses("f4", "i4"), 1)
        self.assertEqual(self.misses("i4", "f4"), 1)
        self.assertEqual(self.misses("i4", "f4"), 0)

    def test_that_is_damaged_is_made_again(self) -> None:
        for suffix in (".nbi", ".nbc"):
            self.misses("f4")
            for path in self.kept(suffix):
                path.write_bytes(b"")
            self.assertEqual(self.misses("f4"), 1)
            self.assertEqual(self.misses("f4"), 0)

    def test_that_cannot_be_written_is_done_without(self) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch.object(numba.core.caching.IndexDataCacheFile, "save", side_effect=full):
            self.assertEqual(self.misses("f4"), 1)
        self.assertEqual(self.misses("f4"), 1)

    def test_is_kept_where_the_file_system_has_no_locks(self) -> None:
        without = OSError(errno.ENOTSUP, "Operation not supported")
        with mock.patch("fcntl.flock", side_effect=without):
            self.misses("f4")
        self.assertEqual(self.misses("f4"), 0)


class Declarations(unittest.TestCase):
    def test_of_two_threads_keep_their_kernels_in_one_folder(self) -> None:
        settings = SimpleNamespace(CACHE_DIR="of other packages")
        seen: list[str] = []
        second_began, first_ended = threading.Event(), threading.Event()

        def njit(**_options: object) -> Callable[[str], SimpleNamespace]:
            def declare(name: str) -> SimpleNamespace:
                if name == "first":
                    second.start()
                    second_began.wait(0.1)  # it must not get here
                else:
                    second_began.set()
                    first_ended.wait(1)
                seen.append(settings.CACHE_DIR)
                return SimpleNamespace(_cache=mock.Mock())

            return declare

        with mock.patch.object(compiled, "_NUMBA", SimpleNamespace(config=settings, njit=njit)):
            second = threading.Thread(target=compiled.kernel, args=("second",))
            compiled.kernel("first")
            first_ended.set()
            second.join()
        self.assertEqual(seen, [str(compiled.cache_folder())] * 2)
        self.assertEqual(settings.CACHE_DIR, "of other packages")
