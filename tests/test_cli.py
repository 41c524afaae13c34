from __future__ import annotations

import errno
import io
import logging
import runpy
import signal
import subprocess
import sys
import unittest
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import moe_weights
from moe_weights.cli import main, show_warnings_without_source
from moe_weights.errors import ConfigError, ConfigProblem, OutputError
from tests.support.command_line import CommandCase, random_weights, run_command

REPO_ROOT = Path(__file__).resolve().parent.parent


class Usage(unittest.TestCase):
    def assert_usage_error(self, told: str, *arguments: str) -> None:
        outcome = run_command(*arguments)
        self.assertEqual(outcome.code, 2)
        self.assertEqual(outcome.out, "")
        self.assertIn(told, outcome.err)

    def test_needs_a_known_command(self) -> None:
        self.assert_usage_error("the following arguments are required: command")
        self.assert_usage_error("invalid choice: 'collect'", "collect")

    def test_needs_the_arguments_of_the_contract_and_no_other(self) -> None:
        self.assert_usage_error("required: --root, --model-id, --run-name", "init-run")
        for command in ("collect-data", "build-tables"):
            self.assert_usage_error("required: --run-dir", command)

    def test_refuses_workers_that_are_no_positive_number(self) -> None:
        for text in ("0", "-1", "two", "1.5"):
            self.assert_usage_error(
                f"argument --workers: {text!r} is not a positive whole number",
                "collect-data", "--run-dir", "x", f"--workers={text}",
            )  # fmt: skip

    def test_shows_help_with_exit_codes_for_each_command(self) -> None:
        commands = (
            *("init-run", "collect-data", "build-tables", "presets", "inspect"),
            *("trace", "trace-model", "trace-sweep"),
        )
        for command in ((), *((name,) for name in commands)):
            outcome = run_command(*command, "--help")
            self.assertEqual(outcome.code, 0)
            self.assertIn("exit codes:\n  0  ok, with or without warnings\n", outcome.out)

    def test_shows_its_version(self) -> None:
        self.assertEqual(run_command("--version").out, f"{moe_weights.__version__}\n")

    def test_starts_without_loading_what_it_does_not_need(self) -> None:
        code = (
            "import sys\n"
            "from moe_weights.cli import main\n"
            "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "heavy = {'numpy', 'pandas', 'pyarrow', 'mlx', 'numba', 'pydantic', 'rich'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPO_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(done.stderr, "[]\n")


class CollectOptions(unittest.TestCase):
    def options(self, *arguments: str) -> Any:
        with mock.patch("moe_weights.commands.collect_data.collect_data", return_value=0) as called:
            self.assertEqual(run_command("collect-data", "--run-dir", "x", *arguments).code, 0)
        return called.call_args.args[0]

    def test_default_to_threads_on_all_usable_cpus_in_a_gibibyte(self) -> None:
        with mock.patch("moe_weights.commands.collect_data.usable_cpus", return_value=13):
            options = self.options()
        found = (options.workers, options.executor, options.scheduler, options.max_memory)
        self.assertEqual(found, (13, "threads", None, 2**30))
        self.assertEqual((options.restart, options.plan_only), (False, False))

    def test_are_taken_as_they_are_given(self) -> None:
        options = self.options("--workers", "3", "--executor", "processes", "--max-memory", "3 GiB",
                               "--restart")  # fmt: skip
        found = (options.workers, options.executor, options.max_memory, options.restart)
        self.assertEqual(found, (3, "processes", 3 * 2**30, True))

    def test_mean_dask_where_a_scheduler_is_given(self) -> None:
        options = self.options("--scheduler", "tcp://a:8786")
        self.assertEqual((options.executor, options.scheduler), ("dask", "tcp://a:8786"))

    def test_that_make_no_sense_are_refused(self) -> None:
        for arguments, told in (
            (["--max-memory", "much"], "argument --max-memory: 'much' is no size; write for ex"),
            (["--max-memory", "0"], "argument --max-memory: '0' is no size; "),
            (["--executor", "carrots"], "argument --executor: invalid choice: 'carrots'"),
        ):  # fmt: skip
            outcome = run_command("collect-data", "--run-dir", "x", *arguments)
            self.assertEqual(outcome.code, 2)
            self.assertIn(told, outcome.err)


class Failures(unittest.TestCase):
    def run_with(self, error: BaseException) -> tuple[int, str]:
        with mock.patch("moe_weights.commands.build_tables.build_tables", side_effect=error):
            outcome = run_command("build-tables", "--run-dir", "x")
        self.assertEqual(outcome.out, "")
        return outcome.code, outcome.err

    def test_raised_on_purpose_show_class_and_message_without_a_traceback(self) -> None:
        self.assertEqual(self.run_with(OutputError("full")), (6, "error: OutputError: full\n"))
        problem = ConfigProblem(path="$.a", message="bad")
        self.assertEqual(
            self.run_with(ConfigError("c", [problem])),
            (2, "error: ConfigError: c: 1 problem\n  $.a: bad\n"),
        )

    def test_show_control_characters_spelled_out(self) -> None:
        self.assertEqual(
            self.run_with(OutputError("a\x1b[31m\r\x9bb\nc")),
            (6, "error: OutputError: a\\x1b[31m\\x0d\\x9bb\nc\n"),
        )

    def test_by_the_keyboard_have_the_usual_code(self) -> None:
        code, told = self.run_with(KeyboardInterrupt())
        self.assertEqual(code, 130)
        self.assertTrue(told.startswith("interrupted; "))

    def test_of_memory_say_what_to_ask_for_and_what_is_kept(self) -> None:
        for error, cause in (
            (MemoryError(), "no more was given"),
            (MemoryError("Unable to allocate 3. GiB"), "Unable to allocate 3. GiB"),
            (RuntimeError("can't start new thread"), "can't start new thread"),
        ):
            told = (
                f"error: MemoryError: {cause}; nothing half-written is left, and finished parts "
                "are kept: run the same command again with a smaller --max-memory, with fewer "
                "--workers, or with a higher limit (see ulimit -v)\n"
            )
            self.assertEqual(self.run_with(error), (1, told))
        with self.assertRaises(RuntimeError):
            self.run_with(RuntimeError("something else"))

    def test_of_a_missing_package_say_what_to_install(self) -> None:
        code, told = self.run_with(ModuleNotFoundError("No module named 'ml_dtypes'"))
        self.assertEqual(code, 2)
        self.assertEqual(
            told,
            "error: ModuleNotFoundError: No module named 'ml_dtypes'; install the package's "
            "dependencies, for example with: pip install ml-dtypes (needed for bfloat16 and FP8)\n",
        )

    def test_say_where_names_are_not_read_as_utf8(self) -> None:
        hint = "hint: file names are read as ascii here; if they are UTF-8, set PYTHONUTF8=1\n"
        with mock.patch("sys.getfilesystemencoding", return_value="ascii"):
            for name, told in (("x", ""), ("mod\xe9l", hint), (repr("m\udcc3"), hint)):
                message = self.run_with(OutputError(name))[1]
                self.assertEqual(message, f"error: OutputError: {name}\n{told}")
        self.assertNotIn("hint", self.run_with(OutputError("mod\xe9l"))[1])

    def test_in_a_folder_that_was_removed_are_told_at_once(self) -> None:
        gone = FileNotFoundError(errno.ENOENT, "No such file or directory")
        with mock.patch("os.getcwd", side_effect=gone):
            outcome = run_command("presets")
        self.assertEqual(outcome.code, 2)
        self.assertEqual(
            outcome.err,
            "error: UsageError: the current folder cannot be used: No such file or directory; "
            "change to another one\n",
        )

    def test_that_nobody_foresaw_keep_their_traceback(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            self.run_with(ZeroDivisionError())


class Output(CommandCase):
    def test_is_nothing_at_all_when_asked(self) -> None:
        self.write_model()
        self.configure({"mlx.enabled": True, "unknown": 1})
        for command in ("collect-data", "build-tables"):
            outcome = run_command(command, "--run-dir", self.path, "--quiet")
            self.assertEqual((outcome.code, outcome.out, outcome.err), (0, "", ""))

    def test_in_a_narrow_encoding_spells_out_what_it_lacks(self) -> None:
        name = "layers.0.experts.0.ü→.weight"
        self.write_model({name: random_weights(4, 4)})
        self.configure()
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="latin-1", write_through=True)
        with mock.patch("sys.stdout", stream):
            self.assertEqual(main(["collect-data", "--run-dir", str(self.path), "--plan"]), 0)
        self.assertIn("layers.0.experts.0.ü\\u2192.weight", raw.getvalue().decode("latin-1"))

    def test_that_was_closed_ends_no_command(self) -> None:
        for arguments in (["presets"], ["presets", "show", "olmoe"]):
            with mock.patch("sys.stdout", None):
                self.assertEqual(main(arguments), 0)
                assert sys.stdout is not None
                sys.stdout.close()

    def test_has_no_escape_codes_even_when_colour_is_forced(self) -> None:
        self.write_model()
        self.configure({"mlx.enabled": True})
        with mock.patch.dict("os.environ", {"FORCE_COLOR": "1", "TERM": "xterm-256color"}):
            for arguments in ((), ("--plan",)):
                outcome = self.collect(*arguments)
                self.assertEqual(outcome.code, 0)
                self.assertNotIn("\x1b", outcome.out + outcome.err)


class LogLevel(unittest.TestCase):
    def test_is_given_to_the_log_on_standard_error(self) -> None:
        with (
            mock.patch("logging.basicConfig") as configure,
            mock.patch("moe_weights.commands.build_tables.build_tables", return_value=0),
        ):
            run_command("build-tables", "--run-dir", "x", "--log-level", "debug")
            run_command("build-tables", "--run-dir", "x")
        levels = [call.kwargs["level"] for call in configure.call_args_list]
        self.assertEqual(levels, ["DEBUG", "WARNING"])
        for level in levels:
            self.assertIsInstance(getattr(logging, level), int)


class ModuleEntry(unittest.TestCase):
    def test_is_the_same_program(self) -> None:
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        with (
            mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
            mock.patch.object(warnings, "formatwarning", warnings.formatwarning),
            mock.patch.object(sys, "argv", ["moe_weights", "build-tables", "--run-dir", "/none"]),
            mock.patch("sys.stderr", io.StringIO()) as told,
            self.assertRaises(SystemExit) as ending,
        ):
            runpy.run_module("moe_weights", run_name="__main__")
        self.assertEqual(ending.exception.code, 2)
        self.assertEqual(
            told.getvalue(),
            "error: UsageError: run directory not found: /none; run init_run first\n",
        )


class PythonWarnings(unittest.TestCase):
    def test_of_this_package_are_shown_without_their_source(self) -> None:
        with mock.patch.object(warnings, "formatwarning", warnings.formatwarning):
            before = warnings.formatwarning
            show_warnings_without_source()
            own = warnings.formatwarning("gone", RuntimeWarning, moe_weights.__file__, 3)
            other = warnings.formatwarning("gone", RuntimeWarning, "/x/other.py", 3, "a = b")
            self.assertEqual(other, before("gone", RuntimeWarning, "/x/other.py", 3, "a = b"))
        self.assertEqual(own, "RuntimeWarning: gone\n")


class PublicNames(unittest.TestCase):
    def test_are_few_and_listed(self) -> None:
        self.assertEqual(moe_weights.__all__, ["OpenedRun", "__version__", "open_run"])
        self.assertLessEqual(set(moe_weights.__all__), set(dir(moe_weights)))
        for name in moe_weights.__all__:
            self.assertTrue(hasattr(moe_weights, name))

    def test_unknown_ones_are_told_as_usual(self) -> None:
        with self.assertRaises(AttributeError) as caught:
            moe_weights.nothing  # noqa: B018
        self.assertEqual(str(caught.exception), "module 'moe_weights' has no attribute 'nothing'")

    def test_version_of_a_source_tree_that_nobody_installed(self) -> None:
        from importlib.metadata import PackageNotFoundError

        with mock.patch("importlib.metadata.version", side_effect=PackageNotFoundError):
            self.assertEqual(moe_weights.__version__, "0+unknown")


if __name__ == "__main__":
    unittest.main()
