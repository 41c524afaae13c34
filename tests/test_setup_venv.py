"""What `make` sets up where an environment lies that is of no use."""

from __future__ import annotations

import os
import shutil
import subprocess
import unittest
from pathlib import Path

from tests.support.runs import temporary_folder

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "setup_venv.sh"
# Stands for an interpreter; makes environments of copies of itself, and installs nothing.
INTERPRETER = """#!/bin/sh
case "$*" in
    *sys.executable*) echo "$0" ;;
    *"import pip"*) [ -e "$(dirname "$0")/pip" ] ;;
    "-m venv "*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        touch "$3/bin/pip" "$3/pyvenv.cfg" ;;
esac
"""


@unittest.skipIf(shutil.which("uv", path=os.defpath), "uv makes environments in its own way")
class Environment(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.interpreter = self.folder / "interpreter"
        self.interpreter.write_text(INTERPRETER, encoding="utf-8")
        self.interpreter.chmod(0o755)
        self.venv = self.folder / "venv"
        (self.venv / "bin").mkdir(parents=True)
        (self.venv / "pyvenv.cfg").touch()
        (self.venv / "old").touch()

    def set_up(self) -> None:
        done = subprocess.run(
            ["/bin/sh", str(SCRIPT), str(self.venv)],
            cwd=self.folder,
            env={"PATH": os.defpath, "PYTHON": str(self.interpreter)},
            capture_output=True,
            text=True,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertTrue((self.venv / "bin" / "pip").exists())

    def test_whose_interpreter_is_gone_is_made_anew(self) -> None:
        (self.venv / "bin" / "python").symlink_to(self.folder / "gone")
        self.set_up()
        self.assertFalse((self.venv / "old").exists())

    def test_whose_making_was_interrupted_is_completed(self) -> None:
        shutil.copy(self.interpreter, self.venv / "bin" / "python")
        self.set_up()
        self.assertTrue((self.venv / "old").exists())

    def test_that_is_whole_is_left_as_it_is(self) -> None:
        shutil.copy(self.interpreter, self.venv / "bin" / "python")
        (self.venv / "bin" / "pip").touch()
        self.set_up()
        self.assertTrue((self.venv / "old").exists())


if __name__ == "__main__":
    unittest.main()
