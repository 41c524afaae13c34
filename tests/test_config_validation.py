from __future__ import annotations

import unittest
from typing import Any

from moe_weights.config.load import load_config
from moe_weights.config.validation import quote_value, validate_document
from tests.support.config_documents import ABSENT, ConfigFileCase, make_config_document

MISSING = "required key is missing; the template of init_run shows it"


class SaysWhatIsWrongWithAValue(ConfigFileCase):
    def assert_problem(self, key: str, value: Any, message: str) -> None:
        with self.subTest(key=key, value=value):
            self.assertEqual(self.problems({key: value}), [f"$.{key}: {message}"])

    def test_types(self) -> None:
        for key, value, message in (
            ("scan.experts_only", "false", 'expected true or false, got the string "false"'),
            ("scan.strict_index", 1, "expected true or false, got the number 1"),
            ("scan.max_files", True, "expected an integer >= 1 or null, got true"),
            ("scan.max_files", 2.0, "expected an integer >= 1 or null, got the number 2.0"),
            (
                "scan.extensions",
                ".npz",
                'expected a non-empty list of strings, got the string ".npz"',
            ),
            ("scan.extensions[0]", 3, "expected a string, got the number 3"),
            ("scan", [], "expected an object, got a list"),
            ("stats", None, "expected an object, got null"),
            ("stats.eps", "1e-12", 'expected a number >= 0, got the string "1e-12"'),
            ("stats.eps", True, "expected a number >= 0, got true"),
            (
                "stats.percentiles_abs",
                {},
                "expected a list of numbers from 0 to 100, got an object",
            ),
            ("stats.group_sizes_lastdim[1]", 1.5, "expected an integer, got the number 1.5"),
            ("model_path", None, "expected a string, got null"),
            ("$schema", 3, "expected a string or null, got the number 3"),
            ("extract_rules", {}, "expected a list of objects, got an object"),
            ("extract_rules[1]", 3, "expected an object, got the number 3"),
            ("extract_rules[1].layout", 3, "expected an object, got the number 3"),
            ("extract_rules[2].packed_split", 3, "expected an object or null, got the number 3"),
            (
                "parsing.proj_aliases",
                [],
                "expected an object with lists of non-empty strings, got a list",
            ),
            ("metadata.config_path", 3, "expected a non-empty string or null, got the number 3"),
            ("output.compression", 3, "expected a string or null, got the number 3"),
        ):
            self.assert_problem(key, value, message)

    def test_paths_below_aliases(self) -> None:
        self.assertEqual(
            self.problems({"parsing.proj_aliases": {"a b": "x", "c": [""]}}),
            [
                (
                    '$.parsing.proj_aliases["a b"]: expected a list of non-empty strings, '
                    'got the string "x"'
                ),
                '$.parsing.proj_aliases.c[0]: expected a non-empty string, got the string ""',
            ],
        )

    def test_ranges(self) -> None:
        for key, value, message in (
            ("stats.eps", -1e-9, "expected a number >= 0, got the number -1e-09"),
            (
                "stats.percentiles_abs[0]",
                101,
                "expected a number from 0 to 100, got the number 101",
            ),
            ("stats.percentiles_abs[0]", -1, "expected a number from 0 to 100, got the number -1"),
            ("stats.sample_per_matrix", 0, "expected an integer >= 1 or null, got the number 0"),
            ("stats.sample_seed", -1, "expected an integer >= 0, got the number -1"),
            ("quant_schemes[0].bits", 0, "expected an integer >= 1, got the number 0"),
            ("debug.print_progress_every_files", -1, "expected an integer >= 0, got the number -1"),
            ("extract_rules[0].name", "", 'expected a non-empty string, got the string ""'),
            ("parsing.preset", "", 'expected a non-empty string or null, got the string ""'),
            ("extract_rules[0].proj", "", 'expected a non-empty string or null, got the string ""'),
            (
                "extract_rules[0].proj_map",
                3,
                "expected an object with non-empty strings, got the number 3",
            ),
            (
                "extract_rules[0].expert_count",
                0,
                "expected an integer >= 1 or null, got the number 0",
            ),
            (
                "extract_rules[0].proj_group",
                0,
                "expected an integer >= 1 or null, got the number 0",
            ),
            (
                "extract_rules[0].layout.expert_axis",
                -1,
                "expected an integer >= 0 or null, got the number -1",
            ),
        ):
            self.assert_problem(key, value, message)

    def test_numbers_that_are_not_finite(self) -> None:
        for text, value in (("NaN", float("nan")), ("Infinity", float("inf"))):
            message = f"{text} is not a finite number; JSON has only finite ones"
            self.assert_problem("stats.eps", value, message)
            self.assert_problem("model_path", value, message)

    def test_numbers_that_are_not_finite_under_unknown_keys(self) -> None:
        self.assertEqual(
            self.problems({"stats.epsilon_": [float("-inf")]}),
            [
                (
                    "$.stats.epsilon_: unknown key; known keys: eps, sample_per_matrix, "
                    "sample_seed, "
                    "percentiles_abs, group_outlier_percentile, group_sizes_lastdim, metrics"
                ),
                "$.stats.epsilon_[0]: -Infinity is not a finite number; JSON has only finite ones",
            ],
        )

    def test_closed_lists(self) -> None:
        for key, value, message in (
            (
                "output.format",
                "parqet",
                'expected "parquet" or "csv", got the string "parqet"; did you mean "parquet"?',
            ),
            ("output.format", None, 'expected "parquet" or "csv", got null'),
            ("mlx.device", "cuda", 'expected "cpu" or "gpu", got the string "cuda"'),
            ("mlx.backend", 1, 'expected "auto" or "mlx" or "native", got the number 1'),
            ("parsing.npz_void16", "f16", 'expected "refuse" or "bfloat16", got the string "f16"'),
            ("parsing.preset", 1, "expected a non-empty string or null, got the number 1"),
            (
                "extract_rules[2].packed_split.axis",
                "row",
                'expected "rows" or "cols", got the string "row"; did you mean "rows"?',
            ),
        ):
            self.assert_problem(key, value, message)

    def test_no_suffix_at_all(self) -> None:
        self.assert_problem(
            "scan.extensions", [], "expected a non-empty list of strings, got a list"
        )

    def test_suffixes(self) -> None:
        for value in ("npz", ".", "", ".fp16.safetensors", ".npz.", ".a/b"):
            message = (
                'a file suffix is one dot and a name, such as ".safetensors"; '
                f'"{value}" would match no file'
            )
            self.assert_problem("scan.extensions[1]", value, message)
            # A list whose only item is faulty is not called empty.
            self.assertEqual(
                self.problems({"scan.extensions": [value]}), [f"$.scan.extensions[0]: {message}"]
            )

    def test_regular_expressions(self) -> None:
        for value, cause in (
            ("experts[", "invalid regular expression at position 7: unterminated character set"),
            ("a{99999999999}", "invalid regular expression: the repetition number is too large"),
            ("(" * 5000 + ")" * 5000, "invalid regular expression: groups are nested too deeply"),
        ):
            for key in ("extract_rules[0].match", "parsing.layer_regex", "parsing.expert_regex"):
                self.assert_problem(key, value, cause)

    def test_regular_expressions_of_ids_need_a_group(self) -> None:
        for key in ("parsing.layer_regex", "parsing.expert_regex"):
            self.assert_problem(
                key,
                r"layers\.\d+",
                "the regular expression needs at least one capture group; "
                r"put the number in parentheses, as in \.(\d+)\.",
            )

    def test_missing_keys(self) -> None:
        for key in (
            "model_path",
            "scan",
            "parsing",
            "parsing.layer_regex",
            "parsing.expert_regex",
            "parsing.proj_aliases",
            "stats",
            "stats.eps",
            "extract_rules[0].name",
            "extract_rules[0].match",
            "extract_rules[2].packed_split.axis",
            "extract_rules[2].packed_split.projs",
            "quant_schemes[0].name",
            "quant_schemes[0].mode",
            "delta_pairs[0].name",
            "delta_pairs[0].a",
            "delta_pairs[0].b",
        ):
            self.assert_problem(key, ABSENT, MISSING)

    def test_an_old_spelling_of_delta_pairs(self) -> None:
        pair = {"name": "d", "reference": "x", "target": "y"}
        self.assertEqual(
            self.problems({"delta_pairs": [pair]}),
            [
                f"$.delta_pairs[0].a: {MISSING}",
                f"$.delta_pairs[0].b: {MISSING}",
                "$.delta_pairs[0].reference: unknown key; known keys: name, a, b",
                "$.delta_pairs[0].target: unknown key; known keys: name, a, b",
            ],
        )


class LeavesToLaterStages(ConfigFileCase):
    def test_values_that_only_a_later_stage_can_judge(self) -> None:
        for key, value in (
            ("model_path", ""),
            ("output.compression", "invalid-codec"),
            ("quant_schemes[0].mode", "no_such_mode"),
            ("quant_schemes[0].group_size", 7),
            ("delta_pairs[0].a", "no_such_scheme"),
            ("stats.group_sizes_lastdim", [0, -4, 32]),
            ("metadata.mode", "anything"),
            ("parsing.proj_aliases", {}),
            ("parsing.preset", None),
            ("parsing.preset", "no_such_preset"),
            ("parsing.lookalikes", [{"match": ".*router", "kind": "router"}]),
            ("extract_rules[2].packed_split.splits", None),
            ("extract_rules[2].packed_split.splits", ABSENT),
            ("extract_rules[0].encodings", ["no_such_encoding"]),
            ("stats.metrics", None),
            ("scan.strict_coverage", True),
            ("stats.eps", 0),
        ):
            with self.subTest(key=key):
                self.assertEqual(load_config(self.write({key: value})).findings, ())


class ReportsEverythingAtOnce(ConfigFileCase):
    def test_in_the_order_of_places(self) -> None:
        rules: list[Any] = [{"name": f"r{n}", "match": "("} for n in range(11)]
        places = [
            problem.split(": ", 1)[0]
            for problem in self.problems({"extract_rules": rules, "stats.eps": "x", "debug": 1})
        ]
        expected = ["$.debug"]
        for n in range(11):
            expected += [f"$.extract_rules[{n}].layout", f"$.extract_rules[{n}].match"]
        self.assertEqual(places, [*expected, "$.stats.eps"])


class QuotesValues(unittest.TestCase):
    def test_long_ones_are_cut(self) -> None:
        self.assertEqual(quote_value("x" * 61), 'the string "' + "x" * 60 + '..."')
        self.assertEqual(quote_value(10**70), "the number 1" + "0" * 59 + "...")

    def test_an_integer_beyond_floats_is_no_number(self) -> None:
        validation = validate_document(make_config_document({"stats.eps": 10**400}))
        self.assertIsNone(validation.config)
        self.assertEqual(
            [fault.message for fault in validation.faults],
            ["expected a number >= 0, got the number 1" + "0" * 59 + "..."],
        )
