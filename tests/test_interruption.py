from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import tomllib
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.errors import ExitCode
from moe_weights.interruption import INTERRUPTED, TOLD, end_cleanly_when_interrupted
from tests.support.runs import temporary_folder

REPO_ROOT = Path(__file__).resolve().parent.parent
LINE = (
    "interrupted; finished files are whole. The same command, run again, goes on from what is "
    "finished or says what it finds there\n"
)


class WhilePackagesAreLoaded(unittest.TestCase):
    # A package that is interrupted while it is loaded, and makes something else of it.
    PYDANTIC = textwrap.dedent(
        """
        import os, signal, time

        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
        except KeyboardInterrupt as error:
            raise ImportError("a part of this package cannot be loaded") from error
        """
    )

    def assert_ends_cleanly(self, *command: str) -> None:
        folder = temporary_folder(self)
        (folder / "pydantic.py").write_text(self.PYDANTIC, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, *command, "--run-dir", str(folder)],
            cwd=REPO_ROOT,
            env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{REPO_ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (130, "", LINE))

    def test_a_script_ends_cleanly(self) -> None:
        for name in ("collect_data", "build_tables"):
            self.assert_ends_cleanly(f"scripts/{name}.py")

    def test_the_module_ends_cleanly(self) -> None:
        self.assert_ends_cleanly("-m", "moe_weights", "collect-data")

    def test_the_console_entry_ends_cleanly(self) -> None:
        project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        module, function = project["project"]["scripts"]["moe-weights"].split(":")
        code = f"import sys; from {module} import {function}; sys.exit({function}())"
        self.assert_ends_cleanly("-c", code, "collect-data")


class Interruption(unittest.TestCase):
    def run_code(self, code: str) -> subprocess.CompletedProcess[str]:
        head = (
            "import os, signal, sys\n"
            "from moe_weights.interruption import end_cleanly_when_interrupted\n"
        )
        return subprocess.run(
            [sys.executable, "-c", head + textwrap.dedent(code)],
            cwd=REPO_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_that_nobody_would_hear_of_ends_the_process(self) -> None:
        done = self.run_code(
            """
            class Dying:
                def __del__(self):
                    os.kill(os.getpid(), signal.SIGINT)

            end_cleanly_when_interrupted()
            print("so far")
            dying = Dying()
            del dying
            print("swallowed")
            """
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (130, "so far\n", LINE))

    def test_leaves_other_swallowed_errors_to_the_interpreter(self) -> None:
        done = self.run_code(
            """
            class Dying:
                def __del__(self):
                    raise ValueError("unheard")

            end_cleanly_when_interrupted()
            dying = Dying()
            del dying
            """
        )
        self.assertEqual(done.returncode, 0)
        self.assertIn("Exception ignored in", done.stderr)
        self.assertIn("ValueError: unheard", done.stderr)

    def test_of_a_command_that_is_done_is_not_heard(self) -> None:
        done = self.run_code(
            """
            import atexit
            from moe_weights.__main__ import main

            atexit.register(os.kill, os.getpid(), signal.SIGINT)
            sys.exit(main(["presets", "show", "no such"]))
            """
        )
        self.assertEqual(done.returncode, 2)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_stays_ignored_where_it_was(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        end_cleanly_when_interrupted()
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

    def test_anywhere_else_is_the_usual_exception(self) -> None:
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        with mock.patch.object(sys, "unraisablehook", sys.unraisablehook):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            end_cleanly_when_interrupted()
            with self.assertRaises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    def test_has_its_documented_code_and_one_line(self) -> None:
        self.assertEqual(INTERRUPTED, ExitCode.INTERRUPTED)
        self.assertEqual(TOLD + "\n", LINE)


if __name__ == "__main__":
    unittest.main()
