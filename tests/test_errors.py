from __future__ import annotations

import contextlib
import io
import pickle
import re
import unittest

from moe_weights import errors
from moe_weights.checkpoint.zip_member import DamagedMemberError
from moe_weights.cli import main
from moe_weights.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    ConfigProblem,
    ExitCode,
    ExtractionError,
    InvalidDataError,
    LayoutError,
    MoeWeightsError,
    OutputError,
    PackedSplitError,
    ShardIndexError,
    UnsupportedDtypeError,
    UsageError,
    WorkerError,
)
from tests.support.command_line import run_command

CODES: dict[type[MoeWeightsError], int] = {
    MoeWeightsError: 1,
    InvalidDataError: 1,
    UsageError: 2,
    ConfigError: 2,
    BackendUnavailableError: 2,
    WorkerError: 1,
    ShardIndexError: 3,
    ExtractionError: 4,
    LayoutError: 4,
    PackedSplitError: 4,
    CheckpointError: 5,
    UnsupportedDtypeError: 5,
    OutputError: 6,
}
PROBLEMS = [
    ConfigProblem(path="$.stats.eps", message="expected a number"),
    ConfigProblem(path="$.scan", message="required key is missing"),
]


class EveryError(unittest.TestCase):
    def test_ends_a_command_with_its_own_code(self) -> None:
        self.assertEqual({kind: int(kind.exit_code) for kind in CODES}, CODES)

    def test_stands_in_this_list_and_in_the_tree_of_the_docstring(self) -> None:
        declared = {
            value
            for value in vars(errors).values()
            if isinstance(value, type) and issubclass(value, MoeWeightsError)
        }
        self.assertEqual(declared, set(CODES))
        drawn = re.findall(r"(\w+Error) +(\d)", errors.__doc__ or "")
        self.assertEqual(
            {name: int(code) for name, code in drawn},
            {kind.__name__: code for kind, code in CODES.items()},
        )

    def test_survives_pickling_with_its_text_and_facts(self) -> None:
        raised: list[MoeWeightsError] = [
            kind("what, where, how") for kind in CODES if kind is not ConfigError
        ]
        raised.append(ConfigError("analysis_config.json", PROBLEMS))
        raised.append(DamagedMemberError("w.npz", "t.npy", "wrong CRC"))
        for error in raised:
            with self.subTest(kind=type(error).__name__):
                for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                    again = pickle.loads(pickle.dumps(error, protocol))
                    self.assertIs(type(again), type(error))
                    self.assertEqual(str(again), str(error))
                    self.assertEqual(again.args, error.args)
                    self.assertEqual(vars(again), vars(error))

    def test_is_also_the_natural_built_in(self) -> None:
        for kind, built_in in {
            InvalidDataError: ValueError,
            UsageError: ValueError,
            ConfigError: ValueError,
            ShardIndexError: ValueError,
            PackedSplitError: ValueError,
            CheckpointError: ValueError,
            UnsupportedDtypeError: TypeError,
            BackendUnavailableError: RuntimeError,
            WorkerError: RuntimeError,
            OutputError: OSError,
        }.items():
            self.assertTrue(issubclass(kind, built_in), kind)


class ConfigErrorText(unittest.TestCase):
    def test_lists_every_problem(self) -> None:
        self.assertEqual(
            str(ConfigError("c.json", PROBLEMS)),
            "c.json: 2 problems\n"
            "  $.stats.eps: expected a number\n"
            "  $.scan: required key is missing",
        )
        self.assertEqual(
            str(ConfigError("c.json", PROBLEMS[:1])),
            "c.json: 1 problem\n  $.stats.eps: expected a number",
        )


class ExitCodes(unittest.TestCase):
    def test_are_those_of_the_help(self) -> None:
        outcome = run_command("--help")
        told = re.findall(r"^  (\d+) ", outcome.out, re.MULTILINE)
        self.assertEqual([int(code) for code in told], [int(code) for code in ExitCode])
        self.assertEqual(set(CODES.values()) | {0, 130}, {int(code) for code in ExitCode})

    def test_main_returns_plain_integers(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertIs(type(main(["build-tables", "--run-dir", "/nowhere/at/all"])), int)


if __name__ == "__main__":
    unittest.main()
