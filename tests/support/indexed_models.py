"""A model of two shards with an index, and what a run says about the index."""

from __future__ import annotations

import json

from tests.support.checkpoints import shard_name
from tests.support.command_line import CommandCase, expert_tensors

FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
EXTRA_LAYER = expert_tensors(layer=1)
INDEX = "model.safetensors.index.json"
STRICT = {"scan.strict_index": True}
OFF = {"scan.use_safetensors_index_json": False}
COUNTS = (
    "expected_shards",
    "scanned_shards",
    "missing_shards",
    "extra_scanned_shards",
    "missing_tensors",
    "extra_tensors",
    "extra_safetensors_files_on_disk",
)


class IndexCase(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.tensors = expert_tensors() | EXTRA_LAYER
        self.write_model(self.tensors, n_shards=2, index=True)
        self.index_path = self.model / INDEX

    def remove_index(self) -> None:
        self.index_path.unlink()

    def break_index(self) -> None:
        self.index_path.write_text("{", encoding="utf-8")

    def weight_map(self) -> dict[str, str]:
        return dict(json.loads(self.index_path.read_text(encoding="utf-8"))["weight_map"])

    def assert_index_state(self, status: str, *, is_used: bool, has_path: bool = True) -> None:
        context = self.log("run_context.json")
        state = dict(context["index"])
        error = state.pop("error", None)
        self.assertEqual(error is not None, status == "error")
        parsed = status == "active"
        self.assertEqual(
            state,
            {
                "status": status,
                "searched": status != "disabled",
                "found": status in {"active", "error"},
                "parsed": parsed,
                "active": is_used,
                "used_for_scan": is_used,
                "index_path": str(self.index_path) if has_path else None,
            },
        )
        self.assertEqual(context["scan_plan"]["scan_mode"], "index" if is_used else "walk")
        summary = self.log("run_health.json")["index_summary"]
        self.assertEqual(
            {key: summary[key] for key in ("active", "parsed", "used_for_scan", "index_path")},
            {key: state[key] for key in ("active", "parsed", "used_for_scan", "index_path")},
        )
        self.assertEqual((self.path / "logs/index_report.json").exists(), is_used)
        self.assertEqual(
            self.log("run_health.json")["outputs_written"]["wrote_index_report"], is_used
        )
        columns = list(self.frame("data/tensor_inventory").columns)
        self.assertEqual(
            [name for name in columns if "index" in name],
            ["in_index", "index_shard"] if is_used else [],
        )
        if not is_used:
            self.assertEqual([summary[f"{name}_count"] for name in COUNTS], [0] * 7)

    def assert_failed(self) -> None:
        """A refused run leaves its reason and none of the marks of success."""
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])
