from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from moe_weights.atomic_files import (
    RunLock,
    atomic_path,
    file_sha256,
    open_regular_file,
    remove_file,
    remove_temporary_siblings,
    to_json,
    write_json_atomic,
    write_text_atomic,
)
from moe_weights.errors import OutputError, UsageError
from tests.support.runs import temporary_folder

REPO_ROOT = Path(__file__).resolve().parent.parent
FULL = OSError(errno.ENOSPC, "No space left on device")
DENIED = PermissionError(errno.EACCES, "Permission denied")


class FolderCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.target = self.folder / "sub" / "a.json"

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


class AtomicWrite(FolderCase):
    def test_replaces_the_target_whole_and_makes_its_folder(self) -> None:
        write_text_atomic(self.target, "old\n")
        write_text_atomic(self.target, "nöw\n")
        self.assertEqual(self.target.read_bytes(), "nöw\n".encode())
        self.assertEqual(self.names(), ["a.json"])

    def test_shows_nothing_of_the_new_file_before_it_is_finished(self) -> None:
        write_text_atomic(self.target, "old")
        with atomic_path(self.target) as temporary:
            temporary.write_text("half")
            self.assertEqual(self.target.read_text(), "old")
            self.assertEqual(temporary.parent, self.target.parent)
            self.assertRegex(temporary.name, r"^\.a\.json\.tmp-\d+-\d+$")
        self.assertEqual(self.target.read_text(), "half")

    def test_flushes_file_and_folder_before_it_is_done(self) -> None:
        with mock.patch("os.fsync", wraps=os.fsync) as fsync:
            write_text_atomic(self.target, "x")
        self.assertEqual(fsync.call_count, 2)

    def test_leaves_the_target_as_it_was_when_anything_fails(self) -> None:
        write_text_atomic(self.target, "old")
        for error in (KeyError("x"), KeyboardInterrupt(), OutputError("told already")):
            with self.assertRaises(type(error)) as caught, atomic_path(self.target) as temporary:
                temporary.write_text("half")
                raise error
            self.assertIs(caught.exception, error)
        self.assertEqual(self.target.read_text(), "old")
        self.assertEqual(self.names(), ["a.json"])

    def test_tells_what_cannot_be_written_and_what_to_do(self) -> None:
        for error, told in {
            FULL: "No space left on device; free some space and run the same command again",
            DENIED: "Permission denied; make the run directory writable or use another --root",
            OSError(errno.EIO, "Input/output error"): "Input/output error; check the run directory",
            OSError("odd"): "odd; check the run directory",
        }.items():
            for place in ("os.fsync", "os.replace"):
                with (
                    self.subTest(error=error, place=place),
                    mock.patch(place, side_effect=error),
                    self.assertRaises(OutputError) as caught,
                ):
                    write_text_atomic(self.target, "x")
                self.assertEqual(
                    str(caught.exception),
                    f"cannot write {self.target}: {told}; the file is as it was before",
                )
                self.assertEqual(self.names(), [])

    def test_tells_when_the_folder_cannot_be_made(self) -> None:
        (self.folder / "sub").write_text("")
        with self.assertRaises(OutputError) as caught:
            write_text_atomic(self.target, "x")
        self.assertEqual(
            str(caught.exception),
            f"cannot write {self.target}: File exists; check the run directory; the file is as it "
            "was before",
        )

    def test_replaces_no_pipe_and_no_device(self) -> None:
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        link = self.folder / "link"
        link.symlink_to("/dev/null")
        for target, what in ((pipe, "a named pipe"), (link, "a device")):
            with self.subTest(what), self.assertRaises(OutputError) as caught:
                write_text_atomic(target, "new")
            self.assertEqual(
                str(caught.exception),
                f"cannot write {target}: it is {what}, and writing would replace it; give the path "
                "of a file",
            )
        self.assertTrue(pipe.is_fifo() and link.is_symlink())

    def test_replaces_no_name_of_an_open_file(self) -> None:
        # Nothing may be renamed over a device of this machine, whatever the code under test does.
        program = (
            "import os; os.replace = print; from moe_weights.atomic_files import *; "
            "write_text_atomic(Path('/dev/stdout'), 'x')"
        )
        with (self.folder / "out").open("wb") as stream:
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=REPO_ROOT, stdout=stream, stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
        self.assertIn(b"cannot write /dev/stdout: it is no file of its own", done.stderr)
        self.assertTrue(Path("/dev/stdout").is_symlink())

    def test_does_without_flushing_a_folder_where_the_file_system_cannot(self) -> None:
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
                raise OSError(errno.EINVAL, "Invalid argument")
            flush(descriptor)

        with mock.patch("os.fsync", fsync):
            write_text_atomic(self.target, "x")
        self.assertEqual(self.target.read_text(), "x")

    def test_tells_when_the_folder_cannot_be_flushed(self) -> None:
        broken = OSError(errno.EIO, "Input/output error")
        with (
            mock.patch("os.fsync", side_effect=[None, broken]),
            self.assertRaisesRegex(OutputError, "Input/output error; check the run directory"),
        ):
            write_text_atomic(self.target, "x")

    def test_of_one_target_by_many_threads_at_once_is_whole(self) -> None:
        texts = [str(number) * 10_000 for number in range(8)]
        start = threading.Barrier(8)

        def write(text: str) -> None:
            start.wait()
            write_text_atomic(self.target, text)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, texts))
        self.assertIn(self.target.read_text(), texts)
        self.assertEqual(self.names(), ["a.json"])


class Json(FolderCase):
    def test_is_sorted_indented_and_ends_with_a_line_break(self) -> None:
        write_json_atomic(self.target, {"b": [1, 2.5, None], "a": {"ü": True}})
        self.assertEqual(
            self.target.read_text(encoding="utf-8"),
            '{\n  "a": {\n    "ü": true\n  },\n  "b": [\n    1,\n    2.5,\n    null\n  ]\n}\n',
        )

    def test_never_holds_what_json_lacks(self) -> None:
        for number in (float("nan"), float("inf")):
            with self.assertRaises(ValueError):
                to_json({"x": number})


class RemovedFile(FolderCase):
    def test_is_gone_or_never_was(self) -> None:
        write_text_atomic(self.target, "x")
        remove_file(self.target)
        remove_file(self.target)
        self.assertEqual(self.names(), [])

    def test_that_cannot_be_removed_is_told(self) -> None:
        with (
            mock.patch.object(Path, "unlink", side_effect=DENIED),
            self.assertRaises(OutputError) as caught,
        ):
            remove_file(self.target)
        self.assertEqual(
            str(caught.exception),
            f"cannot remove {self.target}: Permission denied; make the run directory writable or "
            "use another --root; the file is as it was before",
        )


class RegularFile(FolderCase):
    def test_is_opened_and_what_is_none_is_refused(self) -> None:
        path = self.folder / "a"
        path.write_bytes(b"text")
        with open_regular_file(path) as stream:
            self.assertEqual(stream.read(), b"text")
        for target, kind in (
            (self.folder, IsADirectoryError),
            (self.folder / "none", FileNotFoundError),
            (Path("/dev/null"), OSError),
        ):
            with self.assertRaises(kind):
                open_regular_file(target)


class Digest(FolderCase):
    def test_is_sha256_of_the_bytes(self) -> None:
        write_text_atomic(self.target, "abc")
        self.assertEqual(
            file_sha256(self.target),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        )


class Lock(FolderCase):
    def setUp(self) -> None:
        super().setUp()
        self.lock_path = self.folder / "run" / "cache" / "run.lock"

    def test_is_held_by_one_at_a_time(self) -> None:
        with RunLock(self.lock_path):
            with self.assertRaises(UsageError) as caught, RunLock(self.lock_path):
                pass
            self.assertEqual(
                str(caught.exception),
                f"run directory is in use by another process: {self.folder}/run; wait for it or "
                "choose another --run-name; nothing was written",
            )
        with RunLock(self.lock_path):
            pass

    def test_is_given_back_when_the_work_fails(self) -> None:
        with self.assertRaises(ZeroDivisionError), RunLock(self.lock_path):
            raise ZeroDivisionError
        with RunLock(self.lock_path):
            pass

    def test_given_back_twice_does_no_harm(self) -> None:
        lock = RunLock(self.lock_path)
        with lock:
            pass
        lock.__exit__(None, None, None)
        with lock, self.assertRaises(UsageError), RunLock(self.lock_path):
            self.fail("two held one lock")

    def test_dies_with_its_process(self) -> None:
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from moe_weights.atomic_files import RunLock\n"
            "RunLock(Path(sys.argv[1])).__enter__()\n"
            "os._exit(9)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.lock_path)], cwd=REPO_ROOT, check=False
        )
        self.assertEqual(done.returncode, 9)
        with RunLock(self.lock_path):
            pass

    def test_that_cannot_be_made_or_taken_is_an_output_error(self) -> None:
        advice = {
            "run": "Permission denied; make the run directory writable or use another --root",
            "flock": "No locks available; check the run directory",
        }
        with (
            mock.patch.object(Path, "open", side_effect=DENIED),
            self.assertRaises(OutputError) as opened,
            RunLock(self.lock_path),
        ):
            pass
        with (
            mock.patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")),
            self.assertRaises(OutputError) as locked,
            RunLock(self.lock_path),
        ):
            pass
        for caught, told in ((opened, advice["run"]), (locked, advice["flock"])):
            self.assertEqual(
                str(caught.exception),
                f"cannot write {self.lock_path}: {told}; the file is as it was before",
            )

    def test_clears_away_what_killed_writes_left(self) -> None:
        def leave(*names: str) -> Iterator[Path]:
            for name in names:
                path = self.folder / "run" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"half")
                yield path

        killed = list(leave(".a.tmp-1", "data/.b.parquet.tmp-22-3", "cache/parts/f/.c.tmp-4-0"))
        kept = list(leave("a.tmp-1", "data/.b.tmp-x", "data/.b.tmp-1.csv", ".tmp-1"))
        with RunLock(self.lock_path):
            pass
        self.assertEqual([path for path in killed if path.exists()], [])
        self.assertEqual([path for path in kept if path.exists()], kept)
        self.assertEqual(remove_temporary_siblings(self.folder), 0)

    def test_leaves_a_run_nested_below_alone(self) -> None:
        nested = self.folder / "run" / "nested"
        write_text_atomic(nested / "manifest.json", "{}")
        in_work = nested / "data" / ".a.csv.tmp-1-0"
        write_text_atomic(in_work, "being written")
        with RunLock(self.lock_path):
            pass
        self.assertTrue(in_work.exists())

    def test_is_taken_beside_a_folder_that_may_not_be_looked_into(self) -> None:
        (self.folder / "run" / "closed").mkdir(parents=True)
        denied = PermissionError(errno.EACCES, "Permission denied")
        with mock.patch.object(Path, "exists", side_effect=denied), RunLock(self.lock_path):
            self.assertTrue(self.lock_path.is_file())


if __name__ == "__main__":
    unittest.main()
