from __future__ import annotations

import unittest
from pathlib import Path
from unittest import mock

from moe_weights.audit.index_report import compare_index
from moe_weights.audit.run_health import MemoryUse, OutputCounts, run_health_json
from moe_weights.checkpoint.locate import CheckpointFiles
from moe_weights.checkpoint.shard_index import IndexState, ShardIndex
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.load import parse_config
from moe_weights.config.preset import Preset
from tests.support.config_documents import make_config_document
from tests.support.extraction import make_preset, make_rule, plan_headers

ROOT = Path("/m")
EXPERT = "layers.0.experts.{}.{}.weight"


def header(name: str) -> TensorHeader:
    return TensorHeader(file="a", name=name, dtype_code="F32", shape=(2, 2), offset=0, nbytes=16)


def health(
    names: list[str],
    *,
    experts_only: bool = True,
    index: bool = False,
    preset: Preset | None = None,
    model_config: dict[str, object] | None = None,
) -> dict[str, object]:
    changes = {"scan.experts_only": experts_only}
    config = parse_config(make_config_document(changes))
    headers = [header(name) for name in names]
    state = IndexState(status="not_found", searched=True)
    if index:
        state = IndexState(
            status="active", searched=True, found=True, parsed=True, active=True,
            used_for_scan=True, index_path=ROOT / "i.json",
        )  # fmt: skip
    files = CheckpointFiles(
        model_path=ROOT, root=ROOT, kind="dir", scan_mode="walk", files=("a",), index=state,
        expected_shards=("a", "b"), missing_shards=("b",),
    )  # fmt: skip
    shard_index = ShardIndex(
        path=ROOT / "i.json", weight_map={"gone": "b"}, metadata={"total_size": 5}
    )
    with mock.patch("moe_weights.audit.run_health.utc_now_text", return_value="now"):
        return dict(
            run_health_json(
                {"run_name": "r"},
                duration_seconds=1.23456,
                config=config,
                config_used={"used": True},
                files=files,
                n_tensors=len(headers),
                preset=preset.name if preset else None,
                plan=plan_headers(headers, changes, preset=preset, model_config=model_config),
                report=compare_index(files, shard_index, headers) if index else None,
                outputs=OutputCounts(rows={"matrix_stats": 3}, wrote_index_report=index),
                memory=MemoryUse(max_memory=900, baseline=100, peak=350),
            )
        )


class RunHealth(unittest.TestCase):
    def test_has_the_keys_of_the_contract(self) -> None:
        content = health([])
        self.assertEqual(
            set(content),
            {
                "status", "generated_at", "duration_seconds", "run", "config_used",
                "scan_summary", "extraction_summary", "outputs_written", "tensor_name_formats",
                "tensor_name_examples", "derived_tensor_formats", "index_summary", "preset",
                "coverage", "memory",
            },
        )  # fmt: skip
        self.assertEqual(content["status"], "success")
        self.assertEqual(content["duration_seconds"], 1.235)
        self.assertEqual(content["run"], {"run_name": "r", "model_path": "/m"})
        self.assertEqual(content["config_used"], {"used": True})
        self.assertEqual(
            content["derived_tensor_formats"],
            [
                "<tensor>::<proj>",
                "<tensor>::split[<rows|cols>]::<proj>",
                "<either>::shared[<number>]",
            ],
        )

    def test_counts_tables_that_were_not_written_as_zero(self) -> None:
        self.assertEqual(
            health([])["outputs_written"],
            {
                "format": "parquet",
                "tensor_inventory_rows": 0,
                "matrix_stats_rows": 3,
                "quant_sim_rows": 0,
                "unmatched_tensors_rows": 0,
                "warnings_rows": 0,
                "wrote_unmatched_tensors": False,
                "wrote_warnings": False,
                "wrote_index_report": False,
            },
        )

    def test_tells_what_memory_was_taken(self) -> None:
        self.assertEqual(
            health([])["memory"],
            {
                "max_memory_bytes": 900,
                "baseline_rss_bytes": 100,
                "peak_rss_bytes": 350,
                "peak_beyond_baseline_bytes": 250,
            },
        )
        self.assertEqual(MemoryUse(max_memory=1, baseline=9, peak=3).beyond_baseline, 0)

    def test_shows_at_most_25_distinct_names(self) -> None:
        names = [EXPERT.format(number, "up_proj") for number in range(30)]
        content = health([names[0], *names])
        examples = content["tensor_name_examples"]
        assert isinstance(examples, dict)
        self.assertEqual(examples["rule_extracted"], names[:25])
        summary = content["extraction_summary"]
        assert isinstance(summary, dict)
        self.assertEqual(summary["extracted_by_rule"], 31)

    def test_counts_unmatched_tensors_under_the_expert_filter_only(self) -> None:
        for experts_only, count in ((True, 1), (False, 0)):
            content = health([EXPERT.format(0, "odd"), "norm"], experts_only=experts_only)
            summary, examples = content["extraction_summary"], content["tensor_name_examples"]
            assert isinstance(summary, dict)
            assert isinstance(examples, dict)
            self.assertEqual(summary["unmatched_expertish"], count)
            self.assertEqual(len(examples["unmatched_expertish"]), count)

    def test_tells_tensors_of_the_preset_from_those_of_rules(self) -> None:
        rule = make_rule(
            r"layers\.(\d+)\.experts\.(\d+)\.(up_proj)\.weight$",
            layer_group=1, expert_group=2, proj_group=3,
        )  # fmt: skip
        names = [EXPERT.format(0, "up_proj"), EXPERT.format(0, "down_proj")]
        content = health(names, preset=make_preset(rule, name="mine"))
        self.assertEqual(content["preset"], "mine")
        self.assertEqual(
            content["extraction_summary"],
            {
                "extracted_by_rule": 1,
                "extracted_by_preset": 1,
                "extracted_by_fallback": 0,
                "unmatched_expertish": 0,
                "fallback_after_packed_split": [],
            },
        )
        examples = content["tensor_name_examples"]
        assert isinstance(examples, dict)
        self.assertEqual(
            (examples["preset_extracted"], examples["rule_extracted"]), (names[:1], names[1:])
        )

    def test_says_whether_every_declared_expert_is_there(self) -> None:
        declared = {"num_experts": 2, "hidden_size": 2, "moe_intermediate_size": 2}
        names = [
            EXPERT.format(expert, proj)
            for expert in range(2)
            for proj in ("gate_proj", "up_proj", "down_proj")
        ]
        for held, complete, statuses in (
            (names, True, {"complete": 3}),
            (names[:-1], False, {"complete": 2, "missing": 1}),
        ):
            model_config = {**declared, "num_hidden_layers": 1}
            self.assertEqual(
                health(held, model_config=model_config)["coverage"],
                {
                    "complete": complete,
                    "statuses": statuses,
                    "bytes": {
                        "measured": 16 * len(held),
                        "excluded": 0,
                        "refused": 0,
                        "unmatched": 0,
                        "lookalike": 0,
                    },
                },
            )
        coverage = health(names)["coverage"]
        assert isinstance(coverage, dict)
        self.assertIsNone(coverage["complete"])

    def test_sums_the_index_up(self) -> None:
        self.assertEqual(
            health(["x"], index=True)["index_summary"],
            {
                "active": True,
                "parsed": True,
                "used_for_scan": True,
                "index_path": "/m/i.json",
                "strict_index": False,
                "expected_shards_count": 2,
                "scanned_shards_count": 1,
                "missing_shards_count": 1,
                "extra_scanned_shards_count": 0,
                "missing_tensors_count": 1,
                "extra_tensors_count": 1,
                "extra_safetensors_files_on_disk_count": 0,
                "index_metadata": {"total_size": 5},
            },
        )
        unused = health(["x"])["index_summary"]
        assert isinstance(unused, dict)
        self.assertEqual({unused[key] for key in unused if key.endswith("_count")}, {0})
        self.assertNotIn("index_metadata", unused)


if __name__ == "__main__":
    unittest.main()
