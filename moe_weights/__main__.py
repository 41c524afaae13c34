"""The program: the console entry `moe-weights`, `python -m moe_weights`, and the scripts."""

from __future__ import annotations

import sys

from moe_weights.interruption import end_cleanly_when_interrupted, ignore_interruption


def main(argv: list[str] | None = None) -> int:
    """Run one command as the whole work of this process.

    Args:
        argv: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit code, see `errors.ExitCode`.
    """
    end_cleanly_when_interrupted()
    try:
        from moe_weights import cli

        cli.show_warnings_without_source()
        return cli.main(argv)
    finally:
        ignore_interruption()


if __name__ == "__main__":
    sys.exit(main())
