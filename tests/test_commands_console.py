from __future__ import annotations

import contextlib
import io
import unittest
from collections.abc import Callable
from unittest import mock

from rich.table import Table

from moe_weights.commands.console import ReadingProgress, Reporter, format_bytes, printable

CLOCK = "moe_weights.commands.console.time.monotonic"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def spoken(speak: Callable[[Reporter], object], *, quiet: bool = False) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        speak(Reporter(quiet=quiet))
    return output.getvalue()


class Lines(unittest.TestCase):
    def test_have_their_prefix(self) -> None:
        self.assertEqual(spoken(lambda reporter: reporter.say("collect", "x")), "[collect] x\n")
        self.assertEqual(spoken(lambda reporter: reporter.line("[meta] x")), "[meta] x\n")

    def test_are_never_folded_marked_up_or_given_pictures(self) -> None:
        text = f"[bold]{'x' * 500} :smile: [/nothing] 1.5 'quoted' https://a.b"
        self.assertEqual(spoken(lambda reporter: reporter.line(text)), f"{text}\n")

    def test_but_warnings_are_silent_when_asked(self) -> None:
        def speak(reporter: Reporter) -> None:
            reporter.say("collect", "x")
            reporter.line("x")
            reporter.table(Table("x"))
            reporter.warn("[warn] w")

        self.assertEqual(spoken(speak, quiet=True), "[warn] w\n")

    def test_spell_out_control_characters(self) -> None:
        self.assertEqual(spoken(lambda r: r.line("a\x1b]0;t\x07b")), "a\\x1b]0;t\\x07b\n")
        self.assertEqual(printable("ü\n\t→"), "ü\n\t→")


class Progress(unittest.TestCase):
    def progress(
        self, *, every_files: int = 1, quiet: bool = False
    ) -> tuple[ReadingProgress, list[str]]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            reporter = Reporter(quiet=quiet)
        lines: list[str] = []
        reporter.say = lambda prefix, text: lines.append(f"[{prefix}] {text}")  # type: ignore[method-assign]
        progress = ReadingProgress(
            reporter, total_bytes=8 * 2**20, total_files=4, every_files=every_files
        )
        return progress, lines

    def test_speaks_in_plain_lines_with_bytes_rate_and_time_left(self) -> None:
        with mock.patch(CLOCK, return_value=100.0) as clock:
            progress, lines = self.progress()
            with progress:
                clock.return_value = 104.0
                progress.advance(2**20, 1)  # too soon
                clock.return_value = 108.0
                progress.advance(3 * 2**20, 2)
        self.assertEqual(lines, ["[collect] 2/4 files, 4.0 MiB of 8.0 MiB, 512.0 KiB/s, 8 s left"])

    def test_does_not_count_the_work_of_an_earlier_run_as_speed(self) -> None:
        with mock.patch(CLOCK, return_value=0.0) as clock:
            progress, lines = self.progress()
            with progress:
                progress.take(4 * 2**20)
                clock.return_value = 10.0
                progress.advance(2 * 2**20, 3)
        self.assertEqual(lines, ["[collect] 3/4 files, 6.0 MiB of 8.0 MiB, 204.8 KiB/s, 10 s left"])

    def test_keeps_the_cadence_in_files_but_speaks_every_half_minute(self) -> None:
        with mock.patch(CLOCK, return_value=0.0) as clock:
            progress, lines = self.progress(every_files=3)
            with progress:
                clock.return_value = 10.0
                progress.advance(2**20, 2)
                clock.return_value = 31.0
                progress.advance(2**20, 2)
                clock.return_value = 37.0
                progress.advance(2**20, 4)
        self.assertEqual(
            lines,
            [
                "[collect] 2/4 files, 2.0 MiB of 8.0 MiB, 66.1 KiB/s, 93 s left",
            ],
        )

    def test_is_silent_when_asked(self) -> None:
        for options in ({"quiet": True}, {"every_files": 0}):
            with mock.patch(CLOCK, return_value=0.0) as clock:
                progress, lines = self.progress(**options)
                with progress:
                    clock.return_value = 100.0
                    progress.advance(2**20, 4)
            self.assertEqual(lines, [])

    def test_is_a_moving_bar_on_a_terminal_that_goes_away(self) -> None:
        screen = Terminal()
        with mock.patch.dict("os.environ", {"TERM": "xterm"}), contextlib.redirect_stdout(screen):
            reporter = Reporter(quiet=False)
            with ReadingProgress(
                reporter, total_bytes=2**21, total_files=1, every_files=1
            ) as progress:
                progress.take(2**20)
                progress.advance(2**20, 1)
        self.assertIn("[collect] reading", screen.getvalue())
        self.assertIn("\x1b[2K", screen.getvalue())


class Bytes(unittest.TestCase):
    def test_have_a_binary_unit(self) -> None:
        for nbytes, text in {
            0: "0 B",
            1023: "1023 B",
            1024: "1.0 KiB",
            1536 * 2**10: "1.5 MiB",
            2**30: "1.0 GiB",
            3 * 2**50: "3072.0 TiB",
        }.items():
            self.assertEqual(format_bytes(nbytes), text)


if __name__ == "__main__":
    unittest.main()
