"""Everything on docs/tracing.md that needs neither torch nor a model."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import unittest
from pathlib import Path

from moe_weights.cli import main
from tests.support.documents import REPOSITORY, code_blocks
from tests.support.runs import temporary_folder

PAGE = REPOSITORY / "docs" / "tracing.md"


class Page(unittest.TestCase):
    def setUp(self) -> None:
        self.text = PAGE.read_text(encoding="utf-8")
        before = Path.cwd()
        self.folder = temporary_folder(self)
        self.addCleanup(os.chdir, before)
        os.chdir(self.folder)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.suffix != ".npz")

    def run_quietly(self, arguments: list[str]) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return main(arguments)

    def test_has_commands_that_run_on_the_toy_model(self) -> None:
        ended = {}
        for block in code_blocks(self.text, "sh"):
            for line in block.replace("\\\n", "").splitlines():
                program, command, *options = shlex.split(line)
                self.assertEqual(program, "moe-weights")
                if "toy" in options:
                    ended[command] = self.run_quietly([command, *options])
        self.assertEqual(ended, {"trace": 1, "trace-model": 0})
        self.assertEqual(self.files(), ["compare.json", "first.json", "traces"])

    def test_has_a_program_that_runs(self) -> None:
        (program,) = code_blocks(self.text, "python")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(program, str(PAGE), "exec"), {})
        self.assertEqual(output.getvalue(), "(5, 16)\n")
        self.assertIn("first.json", self.files())


if __name__ == "__main__":
    unittest.main()
