"""A model of fake routers, captured into a bundle."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

from moe_weights.routing import build_manifest, create_working_bundle, load_run_bundle
from moe_weights.routing.capture import RoutingCapture
from tests.support.fake_routers import FakeModel, FakeMoe, FakeRouter


def make_manifest(run_id: str = "one") -> dict[str, Any]:
    return build_manifest(
        run_id=run_id,
        created_at="2026-03-21T12:00:00Z",
        model_id="m",
        tokenizer_id="t",
        prompt_text="",
        derivation_version="none",
        derivation_config_id="none",
        bundle_version="v0.2.0",
    )


def block_of(rule: Any, given: Any, n_experts: int = 5, **more: Any) -> FakeMoe:
    return FakeMoe(FakeRouter(rule, n_experts, 4, **more), n_experts, given)


def all_of(output: Any) -> Any:
    return output[1:]


class CaptureCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def capture(self, model: FakeModel, **options: Any) -> list[dict[str, Any]]:
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle, **options) as capture,
        ):
            model.feed([3, 4, 5])
            model.feed([6], 3)
            model.feed([7], 4)
            bundle.promote()
            self.assertEqual(capture.fed_ids, [3, 4, 5, 6, 7])
        self.assertEqual(sum(len(module._forward_hooks) for module in model.modules()), 0)
        events: list[dict[str, Any]] = load_run_bundle(self.root / "one")["raw_events"]
        self.assertEqual(len(events), len(capture.fed_ids))
        return events

    def layers_of(self, block: FakeMoe) -> list[dict[str, Any]]:
        return [event["layers"][0] for event in self.capture(FakeModel(block))]
