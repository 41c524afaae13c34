"""What a command says on the terminal: prefixed lines, tables, progress.

Colours and the moving bar only on a terminal; plain lines elsewhere; nothing with `--quiet`.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from moe_weights.standard_output import stdout_errors

_LINE_EVERY_S = 5.0
_PLAIN_WIDTH = 200  # piped tables must not be folded to a terminal's width
# Names come from files of strangers; an escape sequence in one must not reach a terminal or a log.
_CONTROL_CHARACTERS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


class _Console(Console):
    """A console that leaves a closed pipe to `stdout_errors`; Rich's own just ends with code 1."""

    def on_broken_pipe(self) -> None:
        """Go on with the error that this is called for.

        Raises:
            BrokenPipeError: always.
        """
        raise  # it is being handled


class Reporter:
    """Speaks for one command."""

    def __init__(self, *, quiet: bool) -> None:
        """Choose where to speak.

        Args:
            quiet: Say nothing but warnings.
        """
        is_terminal = sys.stdout.isatty()
        self.quiet = quiet
        self.console = _Console(
            width=None if is_terminal else _PLAIN_WIDTH,
            # None asks the terminal; FORCE_COLOR must not put colours and a bar into a file.
            force_terminal=None if is_terminal else False,
            soft_wrap=True,
            emoji=False,
        )

    def say(self, prefix: str, text: str) -> None:
        """Print `[prefix] text`, unless quiet."""
        if not self.quiet:
            self._print(f"[{prefix}] {text}")

    def line(self, text: str = "") -> None:
        """Print a line that has its prefix already, unless quiet."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning, also when quiet; `text` has its prefix already."""
        self._print(text)

    def table(self, table: Table) -> None:
        """Print a table, unless quiet."""
        if not self.quiet:
            with stdout_errors():
                self.console.print(table, soft_wrap=False)

    def _print(self, text: str) -> None:
        with stdout_errors():
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class ReadingProgress:
    """How many bytes are done, how fast, and how long it will take."""

    def __init__(
        self, reporter: Reporter, *, total_bytes: int, total_files: int, every_files: int
    ) -> None:
        """Prepare; nothing is shown before `__enter__`.

        Args:
            reporter: Where to show it.
            total_bytes: Weight bytes of the whole plan.
            total_files: Shards of the whole plan.
            every_files: `debug.print_progress_every_files`; 0 shows nothing.
        """
        self._reporter = reporter
        self._total_bytes = total_bytes
        self._total_files = total_files
        self._every_files = every_files
        self._is_shown = every_files > 0 and not reporter.quiet and total_bytes > 0
        self._done_bytes = 0
        self._taken_bytes = 0
        self._line_files = 0
        self._started = self._line_at = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> ReadingProgress:
        """Show the bar on a terminal."""
        if self._is_shown and self._reporter.console.is_terminal:
            self._bar = Progress(
                TextColumn("[collect] reading", markup=False),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._reporter.console,
                transient=True,
            )
            self._bar.add_task("", total=self._total_bytes)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def take(self, nbytes: int) -> None:
        """Count bytes that an earlier run had already done."""
        self._taken_bytes += nbytes
        self.advance(nbytes, 0)

    def advance(self, nbytes: int, done_files: int) -> None:
        """Count finished bytes.

        Args:
            nbytes: Bytes finished since the last call.
            done_files: Shards that are finished altogether.
        """
        self._done_bytes += nbytes
        if not self._is_shown:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done_bytes)
            return
        now = time.monotonic()
        is_due = done_files >= self._line_files + self._every_files or now - self._line_at > 30
        if is_due and now - self._line_at >= _LINE_EVERY_S:
            self._line_files, self._line_at = done_files, now
            self._reporter.say("collect", self._plain_line(done_files, now))

    def _plain_line(self, done_files: int, now: float) -> str:
        rate = (self._done_bytes - self._taken_bytes) / max(now - self._started, 1e-9)
        left = self._total_bytes - self._done_bytes
        remaining = f", {left / rate:.0f} s left" if rate else ""
        return (
            f"{done_files}/{self._total_files} files, {format_bytes(self._done_bytes)} of "
            f"{format_bytes(self._total_bytes)}, {format_bytes(rate)}/s{remaining}"
        )


def printable(text: str) -> str:
    """Return the text with control characters spelled out in hexadecimal; line breaks stay."""
    return text.translate(_CONTROL_CHARACTERS)


def format_bytes(nbytes: float) -> str:
    """Return bytes with a binary unit: `512 B`, `1.5 MiB`."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
