from __future__ import annotations

import os
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.audit.run_context import ModelPathSource, index_path_text, run_context_json
from moe_weights.checkpoint.locate import CheckpointFiles
from moe_weights.checkpoint.shard_index import IndexState
from moe_weights.config.schema import ScanConfig

MODEL = Path("/models/m")
FILES = CheckpointFiles(
    model_path=MODEL,
    root=MODEL,
    kind="dir",
    scan_mode="walk",
    files=("a.safetensors", "b/c.safetensors", "d.npz", "e.npz"),
    index=IndexState(
        status="error",
        searched=True,
        found=True,
        index_path=MODEL / "model.safetensors.index.json",
        error="it is empty",
    ),
)


def context(configured: str = "/models/m", override: str | None = None) -> dict[str, object]:
    source = ModelPathSource(configured=configured, override=override, resolved=MODEL)
    with mock.patch("moe_weights.audit.run_context.utc_now_text", return_value="now"):
        return dict(run_context_json({"run_name": "r"}, source, FILES, ScanConfig(), {"pairs": []}))


class RunContext(unittest.TestCase):
    def test_says_what_was_asked_and_chosen(self) -> None:
        self.assertEqual(
            context(),
            {
                "generated_at": "now",
                "run": {"run_name": "r"},
                "model_path": {
                    "configured": "/models/m",
                    "resolved": "/models/m",
                    "source": "config",
                },
                "cli_overrides": {},
                "scan_plan": {
                    "use_safetensors_index_json": True,
                    "strict_index": False,
                    "model_path_kind": "dir",
                    "index_discovered_but_ignored_due_to_file_model_path": False,
                    "extensions": [".safetensors", ".npz"],
                    "max_files": None,
                    "experts_only": True,
                    "include_shared_expert": True,
                    "inventory_all_tensors": True,
                    "scan_mode": "walk",
                    "scanned_files_count": 4,
                    "scanned_files_example": ["a.safetensors", "b/c.safetensors", "d.npz"],
                },
                "index": {
                    "status": "error",
                    "searched": True,
                    "found": True,
                    "parsed": False,
                    "active": False,
                    "used_for_scan": False,
                    "index_path": "/models/m/model.safetensors.index.json",
                    "error": "it is empty",
                },
                "quantisation_self_check": {"pairs": []},
            },
        )

    def test_shows_the_configured_path_absolute_even_if_nothing_is_there(self) -> None:
        for configured, shown in {
            "": "",
            "no/such": str(Path.cwd() / "no/such"),
            "~nobody-of-this-name/x": "~nobody-of-this-name/x",
        }.items():
            model_path = context(configured, override="/models/m")["model_path"]
            self.assertEqual(
                model_path,
                {"configured": shown, "resolved": "/models/m", "source": "cli_override"},
            )
        with mock.patch.dict(os.environ, {"HOME": "/home/me"}):
            model_path = context("~/x", override="m")["model_path"]
            assert isinstance(model_path, dict)
            self.assertEqual(model_path["configured"], "/home/me/x")

    def test_records_the_override_as_it_was_resolved(self) -> None:
        self.assertEqual(context(override="m")["cli_overrides"], {"model_path": "/models/m"})

    def test_without_an_index_has_no_path_and_no_error(self) -> None:
        state = IndexState(status="not_found", searched=True)
        self.assertIsNone(index_path_text(state))


if __name__ == "__main__":
    unittest.main()
