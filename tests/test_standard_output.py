"""A command whose output nobody can take ends with the code of output that cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.errors import OutputError
from moe_weights.standard_output import stdout_errors


class StdoutErrors(unittest.TestCase):
    def test_are_those_of_streams_alone(self) -> None:
        with mock.patch("os.dup2"), self.assertRaises(OutputError) as caught, stdout_errors():
            raise OSError(errno.ENOSPC, "No space left on device")
        self.assertEqual(
            str(caught.exception),
            "cannot write to standard output: No space left on device; free some space or send it "
            "elsewhere",
        )
        for error in (OSError(errno.ENOSPC, "full", "a.json"), OSError(errno.ENOENT, "gone")):
            with self.assertRaises(OSError) as other, stdout_errors():
                raise error
            self.assertIs(other.exception, error)

    @unittest.skipUnless(Path("/dev/full").exists(), "needs a device that is always full")
    def test_end_every_command_with_6_also_where_1_means_a_difference(self) -> None:
        mocked = ["--baseline", "a", "--target", "b", "--mock", "--prompt", "x"]
        for arguments in (["presets"], ["trace", *mocked], ["trace", *mocked, "--num-layers=600"]):
            for unbuffered in ("", "1"):
                with self.subTest(arguments=arguments, unbuffered=unbuffered):
                    with Path("/dev/full").open("w") as full:
                        done = subprocess.run(
                            [sys.executable, "-m", "moe_weights", *arguments],
                            stdout=full,
                            stderr=subprocess.PIPE,
                            text=True,
                            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
                        )
                    self.assertEqual(done.returncode, 6)
                    self.assertEqual(
                        done.stderr,
                        "error: OutputError: cannot write to standard output: No space left on "
                        "device; free some space or send it elsewhere\n",
                    )

    def test_of_a_closed_pipe_are_told_as_others_are(self) -> None:
        for arguments in (["presets"], ["presets", "show", "olmoe"]):
            reader, writer = os.pipe()
            os.close(reader)
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "moe_weights", *arguments],
                    stdout=writer,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            finally:
                os.close(writer)
            self.assertEqual(done.returncode, 6)
            self.assertEqual(
                done.stderr,
                "error: OutputError: cannot write to standard output: Broken pipe; let its reader "
                "run to the end or send it elsewhere\n",
            )


if __name__ == "__main__":
    unittest.main()
