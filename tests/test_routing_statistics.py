"""Load statistics against tables computed by hand."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
import unittest
from pathlib import Path
from typing import Any

import pandas as pd

from moe_weights.cli import main
from moe_weights.errors import InvalidDataError
from moe_weights.routing import (
    RoutedLayerInput,
    build_layer_grid_layout,
    build_routed_token_event,
    create_working_bundle,
    write_run_bundle,
)
from moe_weights.routing.expert_counts import load_expert_counts
from moe_weights.routing.load_counts import MOST_EXPERTS, LayerCounts, Trend, count_events
from moe_weights.routing.load_statistics import (
    DeadRule,
    coefficient_of_variation,
    jain_fairness,
    to_expert_table,
    to_layer_table,
)
from moe_weights.routing.probabilities import entropy_nats, softmax
from tests.support.routing_bundles import make_event, make_layout, make_manifest

# Layer 3 has four experts, of which two are chosen; layer 5 two, of which one is.
CHOICES = ([0, 1], [0, 2], [0, 1], [1, 0])
LOGITS = ([2.0, 1.0, 0.0, -1.0], [2.0, 0.0, 1.0, -1.0], [3.0, 2.0, 0.0, -1.0], [1.0, 2.0, 0.0, 0.0])


def make_events(run_id: str = "run-001") -> list[dict[str, Any]]:
    """Four tokens, two of the prompt; of the last one, layer 5 was not captured."""
    return [
        build_routed_token_event(
            run_id=run_id,
            token_index=index,
            phase="prefill" if index < 2 else "decode",
            layers=[
                RoutedLayerInput(
                    layer_index=3,
                    num_total_experts=4,
                    num_active_experts=2,
                    router_kind="softmax",
                    router_logits=LOGITS[index],
                    topk_indices=chosen,
                    combine_weights=[0.75, 0.25],
                ),
                RoutedLayerInput(
                    layer_index=5,
                    num_total_experts=2,
                    num_active_experts=1,
                    topk_indices=None if index == 3 else [1],
                ),
            ],
        )
        for index, chosen in enumerate(CHOICES)
    ]


def rows(table: Any) -> list[dict[str, Any]]:
    names = list(table.values)
    return [dict(zip(names, row, strict=True)) for row in zip(*table.values.values(), strict=True)]


class ByHand(unittest.TestCase):
    def test_layers(self) -> None:
        counts = count_events(make_events())
        three, five = rows(to_layer_table(counts, DeadRule(min_tokens=4)))
        # x = 4, 3, 1, 0: sum 8, sum of squares 26, mean 2, variance 26/4 - 4 = 2.5
        self.assertEqual(three["selections"], 8)
        self.assertEqual((three["tokens"], three["tokens_not_captured"]), (4, 0))
        self.assertEqual(three["avg_experts_per_token"], 2.0)
        self.assertAlmostEqual(three["jain_fairness"], 64 / 104)
        self.assertEqual(three["fairness_level"], "warning")
        self.assertAlmostEqual(three["coefficient_of_variation"], math.sqrt(2.5) / 2)
        self.assertEqual((three["max_load"], three["min_load"], three["mean_load"]), (4, 0, 2.0))
        self.assertEqual(three["overloaded_experts"], 0)  # 4 is not above twice 2
        self.assertEqual((three["dead_experts"], three["dead_expert_ids"]), (1, (3,)))
        entropies = [entropy_nats(softmax(logits)) for logits in LOGITS]
        mean = sum(entropies) / 4
        self.assertAlmostEqual(three["mean_entropy"], mean)
        self.assertAlmostEqual(three["mean_normalized_entropy"], mean / math.log(4))
        self.assertAlmostEqual(three["mean_confidence"], 1 - mean / math.log(4))
        self.assertFalse(three["is_collapsed"])
        # least squares over 0, 1, 2, 3: (-1.5 a - 0.5 b + 0.5 c + 1.5 d) / 5
        a, b, c, d = entropies
        self.assertAlmostEqual(three["entropy_slope"], (-1.5 * a - 0.5 * b + 0.5 * c + 1.5 * d) / 5)
        # x = 0, 3 of three captured tokens
        self.assertEqual((five["tokens"], five["tokens_not_captured"]), (3, 1))
        self.assertEqual((five["jain_fairness"], five["coefficient_of_variation"]), (0.5, 1.0))
        self.assertIsNone(five["dead_experts"])
        self.assertIsNone(five["dead_expert_ids"])
        for name in ("mean_entropy", "mean_confidence", "is_collapsed", "entropy_slope"):
            self.assertIsNone(five[name])

    def test_experts(self) -> None:
        table = to_expert_table(count_events(make_events()), DeadRule(min_tokens=0))
        found = rows(table)
        self.assertEqual([(row["layer"], row["expert_id"]) for row in found],
                         [(3, 0), (3, 1), (3, 2), (3, 3), (5, 0), (5, 1)])  # fmt: skip
        self.assertEqual([row["selections"] for row in found], [4, 3, 1, 0, 0, 3])
        self.assertEqual([row["utilisation"] for row in found], [1.0, 0.75, 0.25, 0.0, 0.0, 1.0])
        self.assertEqual([row["load_share"] for row in found[:4]], [0.5, 0.375, 0.125, 0.0])
        self.assertEqual([row["load_over_mean"] for row in found[:4]], [2.0, 1.5, 0.5, 0.0])
        self.assertEqual([row["is_dead"] for row in found],
                         [False, False, False, True, True, False])  # fmt: skip
        self.assertEqual([row["is_overloaded"] for row in found], [False] * 6)
        # expert 0: 0.75 three times and 0.25 once
        self.assertEqual(found[0]["combine_weight_sum"], 2.5)
        self.assertEqual(found[0]["mean_combine_weight"], 0.625)
        self.assertIsNone(found[3]["mean_combine_weight"])
        expected = sum(softmax(logits)[3] for logits in LOGITS) / 4
        self.assertAlmostEqual(found[3]["mean_router_prob"], expected)
        self.assertIsNone(found[4]["mean_router_prob"])

    def test_phases(self) -> None:
        prefill = rows(
            to_layer_table(count_events(make_events(), "prefill"), DeadRule(), "prefill")
        )
        decode = rows(to_layer_table(count_events(make_events(), "decode"), DeadRule(), "decode"))
        self.assertEqual([row["selections"] for row in prefill], [4, 2])
        self.assertEqual([row["selections"] for row in decode], [4, 1])
        self.assertEqual([row["phase"] for row in decode], ["decode", "decode"])
        old = count_events([make_event()], "decode")
        self.assertEqual([layer.tokens for layer in old], [1, 1])
        self.assertEqual(count_events([make_event()], "prefill"), [])

    def test_a_layer_of_which_no_choice_was_captured_is_null_and_not_zero(self) -> None:
        counts = count_events(make_events()[3:])[1:]
        (layer,) = rows(to_layer_table(counts, DeadRule(min_tokens=0)))
        for name in ("selections", "jain_fairness", "max_load", "fairness_level", "dead_experts",
                     "overloaded_experts", "coefficient_of_variation"):  # fmt: skip
            self.assertIsNone(layer[name], name)
        self.assertEqual((layer["tokens"], layer["tokens_not_captured"]), (0, 1))
        (one, _other) = rows(to_expert_table(counts, DeadRule()))
        self.assertIsNone(one["selections"])
        self.assertIsNone(one["is_overloaded"])

    def test_dead_needs_enough_tokens(self) -> None:
        counts = LayerCounts(layer=0, num_total_experts=8, num_active_experts=2, tokens=39,
                             selections=[39, 39, 0, 0, 0, 0, 0, 0])  # fmt: skip
        (row,) = rows(to_layer_table([counts], DeadRule()))
        self.assertEqual(row["dead_min_tokens"], 40)  # 10 * 8 / 2
        self.assertIsNone(row["dead_experts"])
        counts.tokens = 40
        (row,) = rows(to_layer_table([counts], DeadRule()))
        self.assertEqual(row["dead_experts"], 6)
        self.assertEqual(row["overloaded_experts"], 2)  # 39 > 2 * 9.75
        (row,) = rows(to_layer_table([counts], DeadRule(threshold=39)))
        self.assertEqual(row["dead_experts"], 8)

    def test_collapse_is_below_half_a_nat(self) -> None:
        for logits, collapsed in (([5.0, 0.0, 0.0], True), ([1.0, 0.9, 0.8], False)):
            layer = RoutedLayerInput(
                layer_index=0, num_total_experts=3, num_active_experts=1,
                router_kind="softmax", router_logits=logits, topk_indices=[0],
            )  # fmt: skip
            event = build_routed_token_event(
                run_id="r", token_index=0, phase="decode", layers=[layer]
            )
            (row,) = rows(to_layer_table(count_events([event]), DeadRule()))
            self.assertEqual(row["is_collapsed"], collapsed)
            self.assertIsNone(row["entropy_slope"])

    def test_formulas_at_their_ends(self) -> None:
        self.assertEqual(jain_fairness([0, 0]), 0.0)
        self.assertEqual(jain_fairness([7, 7, 7]), 1.0)
        self.assertEqual(jain_fairness([9, 0, 0]), 1 / 3)
        self.assertIsNone(coefficient_of_variation([0, 0]))
        self.assertEqual(coefficient_of_variation([5, 5]), 0.0)
        (row,) = rows(
            to_layer_table([LayerCounts(layer=0, num_total_experts=2, tokens=None)], DeadRule())
        )
        self.assertEqual((row["jain_fairness"], row["fairness_level"]), (0.0, "severe"))
        self.assertIsNone(row["dead_min_tokens"])

    def test_a_trend_is_the_least_squares_line(self) -> None:
        trend = Trend()
        self.assertIsNone(trend.slope)
        for place in range(100_000):
            trend.add(1e6 - 0.25 * place)
        self.assertAlmostEqual(trend.slope or 0.0, -0.25, places=9)


class TheCommand(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.run_dir = Path(folder.name)
        self.routing = self.run_dir / "routing"

    def write_bundle(self, run_id: str = "run-001") -> Path:
        layout = build_layer_grid_layout(
            run_id=run_id, layout_id="grid", layer_expert_counts=[(3, 4), (5, 2)]
        )
        manifest = make_manifest(run_id, bundle_version="v0.2.0")
        return write_run_bundle(self.routing, manifest, make_events(run_id), layout)

    def run_cli(self, *arguments: object) -> tuple[int, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(["routing-stats", *map(str, arguments)])
        return code, out.getvalue()

    def test_writes_both_tables_beside_the_trace_and_prints_one(self) -> None:
        bundle = self.write_bundle()
        code, told = self.run_cli(self.run_dir, "--min-tokens", 4)
        self.assertEqual(code, 0, told)
        head, titles, three, five, wrote = told.splitlines()
        self.assertEqual(head, f"{bundle}: 2 MoE layers, tokens: all")
        self.assertEqual(
            titles.split(),
            [
                "layer",
                "experts",
                "tokens",
                "fairness",
                "cv",
                "max",
                "min",
                "overloaded",
                "dead",
                "entropy",
                "slope",
                "collapsed",
            ],
        )
        self.assertEqual(three.split()[:9], "3 4 4 0.6154 0.7906 4 0 0 1".split())  # noqa: SIM905
        self.assertEqual(three.split()[-1], "no")
        self.assertEqual(
            five.split(), ["5", "2", "3", "0.5000", "1.0000", "3", "0", "0", "-", "-", "-", "-"]
        )
        self.assertEqual(len({len(titles), len(three), len(five)}), 1)
        self.assertEqual(wrote, "wrote routing_expert_stats.parquet, routing_layer_stats.parquet")
        experts = pd.read_parquet(bundle / "routing_expert_stats.parquet")
        self.assertEqual(experts["selections"].tolist(), [4, 3, 1, 0, 0, 3])
        layers = pd.read_parquet(bundle / "routing_layer_stats.parquet")
        self.assertEqual(layers["layer"].tolist(), [3, 5])

    def test_all_bundles_one_bundle_or_a_bundles_own_folder(self) -> None:
        self.write_bundle("a")
        nested = self.write_bundle("group/b")
        with create_working_bundle(self.routing, make_manifest("c")):
            code, told = self.run_cli(self.run_dir)  # an unfinished one is none yet
        self.assertEqual(code, 0, told)
        self.assertEqual(told.count("MoE layers"), 2)
        for line in ((self.run_dir, "--bundle", "group/b"), (nested,)):
            code, told = self.run_cli(*line, "--phase", "decode")
            self.assertEqual(code, 0, told)
            self.assertIn(f"{nested}: 2 MoE layers, tokens: decode", told)
        self.assertEqual(self.run_cli(nested, "--quiet"), (0, ""))

    def test_refusals(self) -> None:
        code, told = self.run_cli(self.run_dir)
        self.assertEqual(code, 2)
        self.assertIn("has no routing bundle; make one with moe-weights capture", told)
        code, told = self.run_cli(self.run_dir, "--bundle", "nothing")
        self.assertEqual(code, 2)
        self.assertIn(str(self.routing / "nothing"), told)
        self.assertEqual(self.run_cli(self.run_dir, "--bundle", "../up")[0], 2)
        bundle = self.write_bundle()
        with (bundle / "raw_trace.ndjson").open("a") as trace:
            trace.write("{}\n")
        code, told = self.run_cli(self.run_dir)
        self.assertEqual(code, 1)
        self.assertEqual(list(bundle.glob("routing_*")), [])

    def test_what_cannot_be_read_is_refused_and_not_left_out(self) -> None:
        self.write_bundle()
        for name in ("raw_trace.ndjson", "expert_counts.json"):
            with self.subTest(name):
                folder = self.routing / name.partition(".")[0]
                folder.mkdir()
                (folder / name).symlink_to("gone")
                code, told = self.run_cli(self.run_dir)
                self.assertNotEqual(code, 0)
                self.assertIn(str(folder), told)
                (folder / name).unlink()

    def test_a_bundle_whose_name_begins_with_a_dot_is_not_left_out(self) -> None:
        bundle = self.write_bundle(".mine")
        unfinished = create_working_bundle(self.routing, make_manifest("other"), durable=False)
        self.addCleanup(unfinished.close)
        unfinished.append(make_event(run_id="other"))
        code, told = self.run_cli(self.run_dir)
        self.assertEqual((code, told.count("MoE layers")), (0, 1), told)
        self.assertTrue(told.startswith(f"{bundle}: 2 MoE layers"))

    def test_a_run_whose_name_no_file_system_takes(self) -> None:
        run_dir = self.run_dir / ("x" * 300)
        code, told = self.run_cli(run_dir)
        self.assertEqual(code, 2)
        self.assertIn(f"{run_dir} cannot be searched: File name too long", told)

    def test_more_experts_than_any_layer_has_are_not_counted(self) -> None:
        with self.assertRaises(InvalidDataError) as caught:
            LayerCounts(layer=3, num_total_experts=MOST_EXPERTS + 1)
        self.assertEqual(
            str(caught.exception),
            "layer 3 is said to have 1000001 experts; more than 1000000 are not counted: the "
            "bundle is damaged",
        )

    def test_counts_without_tokens(self) -> None:
        folder = self.routing / "counts"
        folder.mkdir(parents=True)
        layer = {"layer_index": 1, "num_total_experts": 4, "num_active_experts": 2,
                 "selections": [40, 40, 0, 0]}  # fmt: skip
        payload = {"schema_version": "expert_counts/v0.1.0", "layers": [layer]}
        (folder / "expert_counts.json").write_text(json.dumps(payload))
        code, told = self.run_cli(self.run_dir)
        self.assertEqual(code, 0, told)
        table = pd.read_parquet(folder / "routing_layer_stats.parquet")
        self.assertTrue(table["tokens"].isna().all())
        self.assertEqual(table["dead_experts"].tolist(), [2])  # 80 selections of 2 are 40 tokens
        code, told = self.run_cli(self.run_dir, "--phase", "decode")
        self.assertEqual(code, 2)
        self.assertIn("counts without tokens: they have no phase", told)
        for change, message in (
            ({"schema_version": "x"}, "schema_version is 'x'"),
            ({"layers": {}}, r"\$\.layers must be a list"),
            ({"layers": [{}]}, r"\$\.layers\[0\] must have layer_index"),
            ({"layers": [layer | {"layer_index": -1}]}, "must be counts"),
            ({"layers": [layer, layer]}, "each stands once, in ascending order"),
            ({"layers": [layer | {"num_active_experts": 5}]}, "must be null or 1..4"),
            ({"layers": [layer | {"selections": [1, 2, 3]}]}, "must be 4 counts"),
            ({"layers": [layer | {"selections": [1, 2, 3, True]}]}, "must be 4 counts"),
        ):
            (folder / "expert_counts.json").write_text(json.dumps(payload | change))
            with self.assertRaisesRegex(InvalidDataError, message):
                load_expert_counts(folder)

    def test_a_v0_1_0_bundle(self) -> None:
        events = [make_event(index) for index in range(3)]
        write_run_bundle(self.routing, make_manifest(), events, make_layout())
        code, told = self.run_cli(self.run_dir)
        self.assertEqual(code, 0, told)
        self.assertIn("2 MoE layers", told)


if __name__ == "__main__":
    unittest.main()
