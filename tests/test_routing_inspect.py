from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from moe_weights.columns import Column, Table, TableSchema
from moe_weights.errors import BackendUnavailableError, InvalidDataError
from moe_weights.routing import (
    BundleError,
    derive_bundle_artifacts,
    summarize_bundle,
    write_run_bundle,
    write_selections_parquet,
)
from moe_weights.routing.inspect import main
from moe_weights.routing.sidecar import SELECTIONS
from moe_weights.tables import writer
from moe_weights.tables.writer import write_parquet_stream
from tests.support.command_line import run_command
from tests.support.routing_bundles import (
    make_bundle,
    make_event,
    make_layout,
    make_manifest,
    make_routed_bundle,
    make_routed_event,
    softmax_layer,
    write_unchecked,
)
from tests.support.runs import temporary_folder

REPO_ROOT = Path(__file__).resolve().parent.parent


def inspect(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ending:
            code = int(ending.code or 0)
    return code, out.getvalue(), err.getvalue()


class BundleCase(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def write(self, bundle: dict[str, Any]) -> Path:
        return write_run_bundle(self.root, **bundle)


class Inspect(BundleCase):
    def test_shows_golden_lines(self) -> None:
        bundle = make_bundle()
        bundle["manifest"]["prompt"]["text"] = "hé\n"
        expected = (
            "run_id: run-001\n"
            "created_at: 2026-03-21T12:00:00Z\n"
            "model_id: org/model\n"
            "tokenizer_id: org/model\n"
            "raw_events: 3\n"
            "layers: 2\n"
            "layer_expert_counts: 0=4, 1=2\n"
            "optional_artifacts: derived=yes motif_ledger=yes contingency=yes\n"
            'prompt_text: "h\\u00e9\\n"\n'
            "decode_duration_ms: min=15.0 avg=16.0 max=17.0\n"
        )
        folder = self.write(bundle)
        self.assertEqual(inspect(folder), (0, expected, ""))
        outcome = run_command("inspect", folder)
        self.assertEqual((outcome.code, outcome.out, outcome.err), (0, expected, ""))
        self.assertEqual(run_command("inspect", "--quiet", folder).out, "")

    def test_shows_golden_json(self) -> None:
        folder = self.write(make_bundle(1, derived=False))
        code, out, _err = inspect("--json", folder)
        self.assertEqual(code, 0)
        self.assertEqual(
            json.loads(out),
            {
                "run_id": "run-001",
                "created_at": "2026-03-21T12:00:00Z",
                "model_id": "org/model",
                "tokenizer_id": "org/model",
                "prompt_text": "hello",
                "raw_events": 1,
                "layers": 2,
                "layer_expert_counts": [
                    {"layer_index": 0, "num_total_experts": 4},
                    {"layer_index": 1, "num_total_experts": 2},
                ],
                "optional_artifacts": {
                    "derived": False, "motif_ledger": False, "contingency": False,
                },
                "decode_duration_ms": {"min": 15.0, "max": 15.0, "avg": 15.0},
            },
        )  # fmt: skip
        self.assertTrue(out.startswith('{\n  "created_at": '))
        self.assertEqual(run_command("inspect", folder, "--json").out, out)

    def test_says_nothing_of_durations_without_events(self) -> None:
        folder = self.write(make_bundle(0, derived=False))
        self.assertNotIn("decode_duration_ms", inspect(folder)[1])
        self.assertIsNone(summarize_bundle(folder)["decode_duration_ms"])

    def test_counts_durations_of_generated_tokens_alone(self) -> None:
        bundle = make_routed_bundle(2)
        bundle["raw_events"][0]["timing_ms"].update(decode_end=99.0, decode_duration=98.0)
        bundle["raw_events"].append(make_routed_event(2, pass_start_ms=None, pass_end_ms=None))
        summary = summarize_bundle(self.write(bundle))
        self.assertEqual(summary["decode_duration_ms"], {"min": 2.0, "max": 2.0, "avg": 2.0})

    def test_averages_durations_at_the_edge_of_floats(self) -> None:
        events = [
            make_event(number, decode_start_ms=0.0, decode_end_ms=1.5e308) for number in range(2)
        ]
        folder = write_run_bundle(self.root, make_manifest(), events, make_layout())
        self.assertEqual(summarize_bundle(folder)["decode_duration_ms"]["avg"], 1.5e308)

    def test_spells_out_control_characters(self) -> None:
        bundle = make_bundle()
        bundle["manifest"]["model_id"] = "a\x1b[31mb\nraw_events: 9"
        self.assertIn("model_id: a\\x1b[31mb\\x0araw_events: 9\n", inspect(self.write(bundle))[1])

    def test_ends_with_1_and_a_message_for_every_load_error(self) -> None:
        bundle = make_bundle()
        bundle["raw_events"][0]["layers"][0]["entropy"] = 9.0
        folder = write_unchecked(self.root, bundle)
        for path in (folder, self.root / "nothing", folder / "layout.json"):
            code, out, err = inspect(path)
            self.assertEqual((code, out), (1, ""))
            self.assertTrue(err.startswith("error: run bundle "), err)
            outcome = run_command("inspect", path)
            self.assertEqual((outcome.code, outcome.out), (1, ""))
            self.assertIn("Error: run bundle ", outcome.err)
        bundle["manifest"]["run_id"] = "../evil"
        evil = write_unchecked(self.root / "evil", bundle)
        self.assertEqual((inspect(evil)[0], run_command("inspect", evil).code), (1, 1))

    def test_without_a_folder_shows_its_usage(self) -> None:
        code, out, err = inspect()
        self.assertEqual((code, out), (2, ""))
        self.assertTrue(err.startswith("usage: python -m moe_weights.routing.inspect "))

    def test_runs_as_a_module_without_a_traceback(self) -> None:
        folder = self.write(make_bundle())
        for path, code in ((folder, 0), (self.root, 1)):
            done = subprocess.run(
                [sys.executable, "-W", "error", "-m", "moe_weights.routing.inspect", str(path)],
                cwd=REPO_ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    @unittest.skipUnless(Path("/dev/full").exists(), "needs a device that is always full")
    def test_as_a_module_ends_with_6_when_nobody_takes_its_output(self) -> None:
        folder = self.write(make_bundle(1))
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "moe_weights.routing.inspect", str(folder)],
                cwd=REPO_ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        self.assertEqual(done.returncode, 6)
        self.assertIn("error: cannot write to standard output: No space left", done.stderr)
        self.assertNotIn("Traceback", done.stderr)


class Derivation(BundleCase):
    def test_gives_equal_routing_equal_names(self) -> None:
        derived = make_bundle()["derived_events"]
        payloads = [event["derived_payload"] for event in derived]
        self.assertEqual(payloads[0], payloads[2])
        self.assertEqual(
            payloads[1],
            {
                "global_motif": {"motif_id": "g_001"},
                "layer_motifs": [
                    {"layer_index": 0, "motif_id": "l00_001"},
                    {"layer_index": 1, "motif_id": "l01_000"},
                ],
            },
        )
        self.assertEqual([event["token_index"] for event in derived], [0, 1, 2])

    def test_counts_in_ledger_and_contingency(self) -> None:
        bundle = make_bundle()
        ledger = bundle["motif_ledger"]["ledger_payload"]
        self.assertEqual(
            ledger["layer_motifs"][0],
            {
                "layer_index": 0,
                "topk_indices": [0, 1],
                "motif_id": "l00_000",
                "count": 2,
                "first_token_index": 0,
            },
        )
        self.assertEqual(ledger["global_motifs"][0]["layer_motif_ids"], ["l00_000", "l01_000"])
        self.assertEqual(
            bundle["contingency"]["contingency_payload"]["layer_pairs"],
            [
                {"motif_id": "l00_000", "next_layer_motif_id": "l01_000", "count": 2},
                {"motif_id": "l00_001", "next_layer_motif_id": "l01_000", "count": 1},
            ],
        )

    def test_is_deterministic_and_leaves_the_bundle_alone(self) -> None:
        bundle = make_bundle(derived=False)
        before = json.dumps(bundle)
        self.assertEqual(derive_bundle_artifacts(bundle), derive_bundle_artifacts(bundle))
        self.assertEqual(json.dumps(bundle), before)

    def test_names_nothing_that_was_not_captured(self) -> None:
        bundle = make_routed_bundle(1)
        bundle["raw_events"][0]["layers"][0]["topk_indices"] = None
        (event,) = derive_bundle_artifacts(bundle)["derived_events"]
        self.assertEqual(
            event["derived_payload"]["layer_motifs"], [{"layer_index": 3, "motif_id": "l03_000"}]
        )

    def test_pairs_no_layers_with_one_between_them_that_was_not_captured(self) -> None:
        bundle = make_routed_bundle(2)
        layers = [softmax_layer(layer_index=index) for index in range(3)]
        bundle["raw_events"] = [make_routed_event(number, *layers) for number in range(2)]
        bundle["raw_events"][0]["layers"][1]["topk_indices"] = None
        contingency = derive_bundle_artifacts(bundle)["contingency"]["contingency_payload"]
        self.assertEqual(
            contingency["layer_pairs"],
            [
                {"motif_id": "l00_000", "next_layer_motif_id": "l01_000", "count": 1},
                {"motif_id": "l01_000", "next_layer_motif_id": "l02_000", "count": 1},
            ],
        )


class SideCar(BundleCase):
    def test_has_a_row_per_token_layer_and_chosen_expert(self) -> None:
        folder = self.write(make_bundle(2))
        self.assertEqual(write_selections_parquet(folder), 6)
        rows = pq.read_table(folder / "routing_selections.parquet").to_pylist()
        self.assertEqual(list(rows[0]), list(SELECTIONS.column_names))
        self.assertEqual(
            [(row["token_index"], row["layer"], row["slot"], row["expert_id"]) for row in rows],
            [(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 0), (1, 0, 0, 1), (1, 0, 1, 3), (1, 1, 0, 0)],
        )
        layer = make_event()["layers"][0]
        self.assertEqual(rows[0]["router_prob"], layer["topk_probs"][0])
        self.assertEqual((rows[0]["phase"], rows[0]["combine_weight"]), ("decode", None))
        summarize_bundle(folder)

    def test_leaves_out_what_was_not_captured(self) -> None:
        bundle = make_routed_bundle(1)
        bundle["raw_events"].append(
            make_routed_event(
                1,
                softmax_layer(topk_indices=None, combine_weights=None),
                softmax_layer(layer_index=1, router_logits=None, router_kind=None),
            )
        )
        bundle["layout"] = make_layout(counts=((0, 4), (1, 4), (3, 8)))
        target = self.root / "elsewhere" / "rows.parquet"
        self.assertEqual(write_selections_parquet(self.write(bundle), target), 6)
        rows = pq.read_table(target).to_pylist()
        self.assertEqual([row["layer"] for row in rows], [0, 0, 3, 3, 1, 1])
        self.assertIsNone(rows[4]["router_prob"])
        # softmax of the two best logits, 2 and 1
        self.assertAlmostEqual(rows[4]["combine_weight"], 1 / (1 + math.exp(-1)))

    def test_is_written_in_row_groups(self) -> None:
        folder = self.write(make_bundle(5, derived=False))
        with mock.patch("moe_weights.routing.sidecar._ROWS_PER_GROUP", 4):
            self.assertEqual(write_selections_parquet(folder), 15)
        self.assertEqual(
            pq.ParquetFile(folder / "routing_selections.parquet").metadata.num_row_groups, 3
        )

    def test_is_not_written_for_a_damaged_bundle(self) -> None:
        bundle = make_bundle()
        bundle["raw_events"][2]["layers"][0]["entropy"] = 9.0
        folder = write_unchecked(self.root, bundle)
        before = sorted(folder.iterdir())
        with self.assertRaises(BundleError):
            write_selections_parquet(folder)
        self.assertEqual(sorted(folder.iterdir()), before)


class ParquetStreams(BundleCase):
    schema = TableSchema("sample", (Column("n", "int64", "a count", "experts"),))

    def write_tables(self, *cells: list[Any]) -> int:
        tables = (Table(self.schema, {"n": values}) for values in cells)
        return write_parquet_stream(self.root / "sample.parquet", tables, self.schema)

    def test_hold_declared_columns_also_without_rows(self) -> None:
        self.assertEqual(self.write_tables(), 0)
        field = pq.read_schema(self.root / "sample.parquet").field("n")
        self.assertEqual((str(field.type), field.metadata[b"unit"]), ("int64", b"experts"))
        self.assertEqual(self.write_tables([1, None], [3]), 3)
        table = pq.read_table(self.root / "sample.parquet")
        self.assertEqual(table["n"].to_pylist(), [1, None, 3])

    def test_are_as_before_when_a_value_does_not_fit(self) -> None:
        self.write_tables([1])
        before = (self.root / "sample.parquet").read_bytes()
        with self.assertRaises(InvalidDataError):
            self.write_tables([2], [2**70])
        self.assertEqual((self.root / "sample.parquet").read_bytes(), before)
        self.assertEqual(len(list(self.root.iterdir())), 1)

    def test_need_pyarrow(self) -> None:
        with (
            mock.patch.dict("sys.modules", {"pyarrow": None, "pyarrow.parquet": None}),
            self.assertRaises(BackendUnavailableError) as caught,
        ):
            self.write_tables([1])
        self.assertTrue(str(caught.exception).endswith("install it with: pip install pyarrow"))
        self.assertTrue(hasattr(writer, "write_parquet_stream"))


if __name__ == "__main__":
    unittest.main()
