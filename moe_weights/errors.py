"""Which exceptions the toolkit raises on purpose, and with which code each one ends a command.

MoeWeightsError                  1
├── InvalidDataError             1   the check found invalid data (for example duplicate keys)
├── UsageError                   2   arguments, paths or a run directory that cannot be used
├── ConfigError                  2   analysis_config.json; lists every problem at once
├── ShardIndexError              3   index strictness
├── ExtractionError              4   extraction or coverage strictness
│   ├── LayoutError              4
│   └── PackedSplitError         4
├── CheckpointError              5   input that cannot be read
│   └── UnsupportedDtypeError    5
├── BackendUnavailableError      2   an optional package that the config insists on is missing
├── WorkerError                  1   workers died again and again, or are not what they should be
└── OutputError                  6   output that cannot be written
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """The documented exit codes of every command; never 0 on failure."""

    OK = 0
    INVALID_DATA = 1
    USAGE = 2
    INDEX = 3
    EXTRACTION = 4
    INPUT = 5
    OUTPUT = 6
    INTERRUPTED = 130


class MoeWeightsError(Exception):
    """Base of all errors raised on purpose; `exit_code` ends the command."""

    exit_code: ExitCode = ExitCode.INVALID_DATA


class InvalidDataError(MoeWeightsError, ValueError):
    """Data that was read contradicts itself."""


class UsageError(MoeWeightsError, ValueError):
    """A command was called with something it cannot work with."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigProblem:
    """One fault of a configuration file.

    Attributes:
        path: JSON path of the value, for example `$.stats.eps`.
        message: What is wrong and how to mend it.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(MoeWeightsError, ValueError):
    """A configuration file with at least one fault; all of them are listed."""

    exit_code = ExitCode.USAGE

    def __init__(self, source: str, problems: Sequence[ConfigProblem]) -> None:
        """Keep the file's name and its problems, in file order."""
        self.source = source
        self.problems = tuple(problems)
        super().__init__(source, self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{self.source}: {count} problem{'s' if count != 1 else ''}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class ShardIndexError(MoeWeightsError, ValueError):
    """The shard index is missing, broken or contradicted, and the config is strict about it."""

    exit_code = ExitCode.INDEX


class ExtractionError(MoeWeightsError, ValueError):
    """A tensor cannot be turned into expert matrices as the config demands."""

    exit_code = ExitCode.EXTRACTION


class LayoutError(ExtractionError):
    """Axis numbers do not describe the tensor's shape."""


class PackedSplitError(ExtractionError):
    """Split sizes do not describe the fused axis."""


class CheckpointError(MoeWeightsError, ValueError):
    """A file of the checkpoint cannot be read or is malformed."""

    exit_code = ExitCode.INPUT


class UnsupportedDtypeError(CheckpointError, TypeError):
    """A dtype code that cannot be decoded into numbers."""


class BackendUnavailableError(MoeWeightsError, RuntimeError):
    """An optional package or device that the config insists on is not there."""

    exit_code = ExitCode.USAGE


class WorkerError(MoeWeightsError, RuntimeError):
    """Processes or machines that measure cannot do so; finished parts are kept."""


class OutputError(MoeWeightsError, OSError):
    """A file of the run directory cannot be written."""

    exit_code = ExitCode.OUTPUT
