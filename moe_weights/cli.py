"""The commands of `moe-weights <command>`, also `python -m moe_weights <command>`.

A subcommand's modules are loaded when it is used, so that `--help` and small commands start fast.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import moe_weights
from moe_weights.cli_runtime import add_runtime_commands
from moe_weights.errors import ExitCode, MoeWeightsError
from moe_weights.interruption import TOLD
from moe_weights.standard_output import replace_closed_stdout, stdout_errors
from moe_weights.surroundings import check_current_folder, encoding_hint

_LOG_LEVELS = ("debug", "info", "warning", "error")
_EXIT_CODES = """exit codes:
  0  ok, with or without warnings
  1  invalid data (for example duplicate keys), lost workers, or an unforeseen error
  2  usage or analysis_config.json
  3  index strictness
  4  extraction or coverage strictness
  5  input that cannot be read
  6  output that cannot be written
  130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit code, see `errors.ExitCode`.
    """
    try:
        # Loading packages makes objects by the hundred thousand and no garbage: collect it rarely.
        gc.set_threshold(100_000, 20, 20)
        replace_closed_stdout()
        arguments = _build_parser().parse_args(argv)
        check_current_folder()
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name that the terminal's encoding lacks must not end a run of hours.
            sys.stdout.reconfigure(errors="backslashreplace")
        logging.basicConfig(
            level=arguments.log_level.upper(),
            format="%(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        run: Callable[[argparse.Namespace], int] = arguments.run
        with stdout_errors():
            code = run(arguments)
            sys.stdout.flush()
        return code
    except ImportError as error:
        # A declared dependency is gone; those that may be missing are handled where they are used.
        print(  # noqa: T201
            f"error: {type(error).__name__}: {error}; install the package's dependencies, for "
            "example with: pip install ml-dtypes (needed for bfloat16 and FP8)",
            file=sys.stderr,
        )
        return int(ExitCode.USAGE)
    except MoeWeightsError as error:
        from moe_weights.commands.console import printable

        text = f"error: {type(error).__name__}: {printable(str(error))}"
        print(f"{text}{encoding_hint(text)}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        # A thread needs room for its stack, and says so in this way.
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        print(  # noqa: T201
            f"error: MemoryError: {str(error) or 'no more was given'}; nothing half-written is "
            "left, and finished parts are kept: run the same command again with a smaller "
            "--max-memory, with fewer --workers, or with a higher limit (see ulimit -v)",
            file=sys.stderr,
        )
        return int(ExitCode.INVALID_DATA)
    except KeyboardInterrupt:
        print(TOLD, file=sys.stderr)  # noqa: T201
        return int(ExitCode.INTERRUPTED)


def show_warnings_without_source() -> None:
    """Have warnings of this package shown as one line: where it is installed helps nobody."""
    whole, folder = warnings.formatwarning, f"{Path(__file__).parent}{os.sep}"

    def format_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if filename.startswith(folder):
            return f"{category.__name__}: {message}\n"
        return whole(message, category, filename, lineno, line)

    warnings.formatwarning = format_warning


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-weights",
        description="Evidence about Mixture-of-Experts checkpoints.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=moe_weights.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_init_run(commands)
    _add_collect_data(commands)
    _add_build_tables(commands)
    _add_presets(commands)
    add_runtime_commands(lambda *about: _add_command(commands, *about))
    return parser


_Commands = argparse._SubParsersAction  # argparse gives this type no public name


def _add_command(
    commands: _Commands[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing unless something went wrong"
    )
    parser.add_argument(
        "--log-level", choices=_LOG_LEVELS, default="warning", help="diagnostics on stderr"
    )
    parser.set_defaults(run=run)
    return parser


def _add_init_run(commands: _Commands[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.commands.init_run import init_run

        return init_run(
            Path(arguments.root),
            arguments.model_id,
            arguments.run_name,
            arguments.model_path,
            quiet=arguments.quiet,
        )

    parser = _add_command(
        commands, "init-run", "Make a run directory with a config template to edit.", run
    )
    parser.add_argument("--root", required=True, help="folder of all runs")
    parser.add_argument("--model-id", required=True, help="first part of the run's path; / nests")
    parser.add_argument("--run-name", required=True, help="last part of the run's path")
    parser.add_argument("--model-path", help="model directory or a single shard, for the config")


def _add_collect_data(commands: _Commands[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.commands.collect_data import CollectOptions, collect_data, usable_cpus
        from moe_weights.commands.memory import DEFAULT_MAX_MEMORY

        return collect_data(
            CollectOptions(
                run_dir=Path(arguments.run_dir),
                model_path=arguments.model_path,
                plan_only=arguments.plan,
                workers=arguments.workers or usable_cpus(),
                executor=arguments.executor or ("dask" if arguments.scheduler else "threads"),
                scheduler=arguments.scheduler,
                max_memory=arguments.max_memory or DEFAULT_MAX_MEMORY,
                restart=arguments.restart,
                quiet=arguments.quiet,
            )
        )

    parser = _add_command(
        commands,
        "collect-data",
        "Measure every expert matrix of a checkpoint and simulate its quantisation.",
        run,
    )
    parser.add_argument("--run-dir", required=True, help="run directory made by init-run")
    parser.add_argument("--model-path", help="replaces model_path of the config for this run")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print what would be measured, from headers alone, and write nothing",
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard what an unfinished run has left"
    )
    parser.add_argument(
        "--workers",
        type=_positive_int,
        metavar="N",
        help="how many measure at a time (default: the usable CPUs); a cluster given by its "
        "address has its own number",
    )
    parser.add_argument(
        "--max-memory",
        type=_size,
        metavar="SIZE",
        help="memory beyond the interpreter and its libraries, such as 512MiB or 4GiB; for each "
        "process where several measure (default: 1GiB)",
    )
    parser.add_argument(
        "--executor",
        choices=("threads", "processes", "dask"),
        help="who measures (default: threads, or dask with --scheduler)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="address of a running Dask scheduler, such as tcp://HOST:8786",
    )


def _add_build_tables(commands: _Commands[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.commands.build_tables import build_tables

        return build_tables(
            Path(arguments.run_dir), routed_only=arguments.routed_only, quiet=arguments.quiet
        )

    parser = _add_command(
        commands, "build-tables", "Summarise collected data by layer, block and projection.", run
    )
    parser.add_argument("--run-dir", required=True, help="run directory with collected data")
    parser.add_argument(
        "--routed-only",
        action="store_true",
        help="also write each summary without shared experts, as <name>_routed",
    )


def _add_presets(commands: _Commands[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.commands.presets import list_presets, show_preset

        return show_preset(arguments.name) if arguments.action == "show" else list_presets()

    parser = _add_command(
        commands, "presets", "List the known architectures, or show the rules of one.", run
    )
    actions = parser.add_subparsers(dest="action", metavar="show NAME")
    what = "print one preset in the form of a config, to paste and edit"
    show = actions.add_parser("show", help=what, description=what)
    show.add_argument("name", metavar="NAME", help="name of the preset, as the list prints it")


def _size(text: str) -> int:
    from moe_weights.commands.memory import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value
