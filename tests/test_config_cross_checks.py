from __future__ import annotations

from moe_weights.config.load import load_config
from tests.support.config_documents import ABSENT, ConfigFileCase

LAYOUT = "layout must include rows_axis and cols_axis; give the position of each, counted from 0"


class ChecksRules(ConfigFileCase):
    def test_layout_without_rows_or_cols(self) -> None:
        for layout in (ABSENT, None, {}, {"rows_axis": 0}, {"rows_axis": None, "cols_axis": 1}):
            with self.subTest(layout=layout):
                self.assertEqual(
                    self.problems({"extract_rules[1].layout": layout}),
                    [f"$.extract_rules[1].layout: {LAYOUT}"],
                )

    def test_axis_out_of_range(self) -> None:
        for ndim, axis, choice in ((3, 3, "0, 1 or 2"), (2, 5, "0 or 1"), (9, 9, "0 to 8")):
            with self.subTest(ndim=ndim):
                changes = {
                    "extract_rules[2].ndim": ndim,
                    "extract_rules[2].layout": {"rows_axis": axis, "cols_axis": 1},
                }
                self.assertEqual(
                    self.problems(changes),
                    [
                        (
                            f"$.extract_rules[2].layout.rows_axis: {axis} is out of range for "
                            f"ndim={ndim}; use {choice}"
                        )
                    ],
                )

    def test_axis_out_of_range_of_a_vector(self) -> None:
        changes = {
            "extract_rules[0].ndim": 1,
            "extract_rules[0].layout": {"rows_axis": 0, "cols_axis": 1},
        }
        self.assertEqual(
            self.problems(changes),
            ["$.extract_rules[0].layout.cols_axis: 1 is out of range for ndim=1; use 0"],
        )

    def test_any_axis_fits_without_ndim(self) -> None:
        layout = {"rows_axis": 7, "cols_axis": 3}
        changes = {"extract_rules[0].ndim": ABSENT, "extract_rules[0].layout": layout}
        self.assertEqual(load_config(self.write(changes)).findings, ())

    def test_stacked_experts_lie_on_rows_or_cols_and_nowhere_else(self) -> None:
        place = "$.extract_rules[1].layout.stacked_experts_axis"
        layout = {"rows_axis": 0, "cols_axis": 1}
        for axis in (0, 1):
            changes = {"extract_rules[1].layout": layout | {"stacked_experts_axis": axis}}
            self.assertEqual(load_config(self.write(changes)).findings, ())
        self.assertEqual(
            self.problems({"extract_rules[1].layout": layout | {"stacked_experts_axis": 2}}),
            [f"{place}: 2 is neither rows_axis nor cols_axis; experts lie on one"],
        )
        both = {"expert_axis": 0, "rows_axis": 1, "cols_axis": 2, "stacked_experts_axis": 1}
        self.assertEqual(
            self.problems({"extract_rules[0].layout": both}),
            [
                (
                    f"{place.replace('[1]', '[0]')}: expert_axis says already where the experts "
                    "are; keep one of both"
                )
            ],
        )
        absent = {"rows_axis": 0, "stacked_experts_axis": 5}
        self.assertEqual(
            self.problems({"extract_rules[1].layout": absent}),
            [f"$.extract_rules[1].layout: {LAYOUT}"],
        )

    def test_groups_of_every_kind_must_exist(self) -> None:
        for name in ("proj_group", "expert_group", "layer_group", "stack_group"):
            self.assertEqual(
                self.problems({f"extract_rules[1].{name}": 3}),
                [
                    (
                        f"$.extract_rules[1].{name}: there is no group 3: match has 2 capture "
                        "groups; use 1 or 2"
                    )
                ],
            )

    def test_axes_that_do_not_cover_ndim_are_left_to_the_tensor(self) -> None:
        layout = {"rows_axis": 1, "cols_axis": 2}
        self.assertEqual(load_config(self.write({"extract_rules[0].layout": layout})).findings, ())

    def test_two_meanings_of_one_axis(self) -> None:
        layout = {"layer_axis": 1, "expert_axis": 0, "rows_axis": 1, "cols_axis": 0}
        self.assertEqual(
            self.problems({"extract_rules[0].layout": layout}),
            [
                (
                    "$.extract_rules[0].layout.cols_axis: axis 0 is already expert_axis; "
                    "each axis has one meaning"
                ),
                (
                    "$.extract_rules[0].layout.rows_axis: axis 1 is already layer_axis; "
                    "each axis has one meaning"
                ),
            ],
        )

    def test_groups_beyond_the_expression(self) -> None:
        for match, advice in (
            ("x", "match has no capture group; put parentheses around what to capture"),
            ("(x)", "match has 1 capture group; use 1"),
            ("(x)(y)", "match has 2 capture groups; use 1 or 2"),
        ):
            for key in ("proj_group", "expert_group"):
                with self.subTest(match=match, key=key):
                    changes = {
                        "extract_rules[1].match": match,
                        "extract_rules[1].proj_group": None,
                        "extract_rules[1].expert_group": None,
                        f"extract_rules[1].{key}": 3,
                    }
                    self.assertEqual(
                        self.problems(changes),
                        [f"$.extract_rules[1].{key}: there is no group 3: {advice}"],
                    )

    def test_what_names_the_projection_must_be_used(self) -> None:
        self.assertEqual(
            self.problems({"extract_rules[1].proj": "gate_proj"}),
            [
                (
                    "$.extract_rules[1].proj: proj_group says already where the projection is; "
                    "keep one of both"
                )
            ],
        )
        mapped = {"extract_rules[1].proj_map": {"gate_proj": "up_proj"}}
        self.assertEqual(load_config(self.write(mapped)).findings, ())
        self.assertEqual(
            self.problems(mapped | {"extract_rules[1].proj_group": None}),
            [
                (
                    "$.extract_rules[1].proj_map: there is no proj_group to capture what it maps; "
                    "give its capture group"
                )
            ],
        )
        unused = {"extract_rules[1].proj": None, "extract_rules[2].proj_map": {}}
        self.assertEqual(load_config(self.write(unused)).findings, ())

    def test_disabled_rules_are_checked_alike(self) -> None:
        changes = {"extract_rules[2].enabled": False, "extract_rules[2].proj_group": 2}
        self.assertEqual(
            self.problems(changes),
            [
                (
                    "$.extract_rules[2].proj_group: there is no group 2: "
                    "match has 1 capture group; use 1"
                )
            ],
        )

    def test_two_of_one_name(self) -> None:
        for key, noun in (
            ("extract_rules", "rule"),
            ("quant_schemes", "scheme"),
            ("delta_pairs", "pair"),
        ):
            with self.subTest(key=key):
                changes = {f"{key}[0].name": "twice", f"{key}[1].name": "twice"}
                self.assertEqual(
                    self.problems(changes),
                    [
                        (
                            f'$.{key}[1].name: "twice" is already the name of {key}[0]; '
                            f"give each {noun} its own name"
                        )
                    ],
                )

    def test_sizes_of_a_split_are_left_to_the_tensor(self) -> None:
        split = {"axis": "cols", "splits": [-1, 0, 7], "projs": ["a"]}
        config = load_config(self.write({"extract_rules[2].packed_split": split})).config
        decided = config.extract_rules[2].packed_split
        assert decided is not None
        self.assertEqual((decided.splits, decided.projs), ((-1, 0, 7), ("a",)))

    def test_cross_checks_step_over_values_of_the_wrong_type(self) -> None:
        rule = {
            "name": 3,
            "match": 4,
            "ndim": "3",
            "layout": {"rows_axis": "0", "cols_axis": True},
            "proj_group": "1",
        }
        places = [
            problem.split(": ", 1)[0] for problem in self.problems({"extract_rules": [rule, 7]})
        ]
        self.assertEqual(
            places,
            [
                "$.extract_rules[0].layout.cols_axis",
                "$.extract_rules[0].layout.rows_axis",
                "$.extract_rules[0].match",
                "$.extract_rules[0].name",
                "$.extract_rules[0].ndim",
                "$.extract_rules[0].proj_group",
                "$.extract_rules[1]",
            ],
        )
