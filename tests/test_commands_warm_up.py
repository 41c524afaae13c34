"""Whoever waits for the compiler is told why, and nobody else is."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.commands import warm_up
from tests.support.runs import temporary_folder

# Declares all kernels, as a command does, and compiles the smallest.
_DECLARE = """
import sys
from moe_weights.commands import collect_data, warm_up
from moe_weights.commands.console import Reporter
from moe_weights.measure.double_double import add_to

warm_up.announce_compilation(Reporter(quiet=False))
sys.stdout.flush()
if "compile" in sys.argv:
    add_to(1.0, 0.0, 1.0)
"""


class _Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, prefix: str, text: str) -> None:
        self.lines.append(f"[{prefix}] {text}")


def announced(folder: Path | None) -> list[str]:
    reporter = _Lines()
    with mock.patch.object(warm_up, "cache_folder", lambda: folder):
        warm_up.announce_compilation(reporter)  # type: ignore[arg-type]
    return reporter.lines


class AnnouncedCompilation(unittest.TestCase):
    def test_is_told_before_the_first_run_of_an_installation_only(self) -> None:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(temporary_folder(self))}
        said = [
            subprocess.run(
                [sys.executable, "-c", _DECLARE, *arguments],
                env=environment, capture_output=True, text=True, check=True,
            ).stdout
            for arguments in ([], ["compile"], [])
        ]  # fmt: skip
        line = "[collect] compiling kernels, once after an installation or update\n"
        self.assertEqual(said, [line, line, ""])

    def test_is_told_each_time_where_nothing_can_be_kept(self) -> None:
        line = (
            "[collect] compiling kernels; they cannot be kept: set NUMBA_CACHE_DIR to a folder "
            "that can be written to"
        )
        self.assertEqual(announced(None), [line])

    def test_is_silent_where_machine_code_lies_in_a_folder_of_a_source(self) -> None:
        folder = temporary_folder(self)
        (folder / "measure_0123").mkdir()
        (folder / "measure_0123" / "a_kernel.py.nbi").touch()
        self.assertEqual(announced(folder), [])
