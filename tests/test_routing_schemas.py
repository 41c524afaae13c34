from __future__ import annotations

import copy
import json
import random
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from moe_weights.routing import (
    load_schema,
    validate_artifact_schema,
    validate_run_bundle_schema,
)
from moe_weights.routing.artifacts import ARTIFACT_NAMES, ArtifactName, payload_version
from moe_weights.routing.schema_accept import compile_schema
from moe_weights.routing.schema_check import _validator
from tests.support.routing_bundles import make_bundle, make_event, make_manifest, make_routed_bundle

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.0, 0.5, -0.5, 1.5, float("nan"), float("inf"), 10**400, 2**63,
    -(2**63) - 1, "", "x", "moe", "prefill", "2026-03-21T12:00:00Z", "2026-03-21", [], [1], [1.0],
    [True], ["x"], [float("nan"), 0.5], [2**64], [[]], {}, {"text": ""}, {"a": 1}, (1, 2),
    ["topk_indices"], ["topk_indices", "topk_indices"], ["unknown"],
)  # fmt: skip


def payloads() -> Iterator[tuple[ArtifactName, dict[str, Any]]]:
    for bundle in (make_bundle(1), make_routed_bundle(1)):
        yield "manifest", bundle["manifest"]
        yield "raw_event", bundle["raw_events"][0]
        yield "layout", bundle["layout"]
        for name in ("motif_ledger", "contingency"):
            if bundle[name] is not None:
                yield cast("ArtifactName", name), bundle[name]
        for event in bundle["derived_events"] or ():
            yield "derived_event", event


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def damage(payload: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Replace, remove or add something somewhere."""
    damaged = copy.deepcopy(payload)
    target = rng.choice([found for found in containers(damaged) if found])
    places = list(target) if isinstance(target, dict) else list(range(len(target)))
    place = rng.choice(places)
    action = rng.random()
    if action < 0.7:
        target[place] = rng.choice(ODD_VALUES)
    elif action < 0.85:
        del target[place]
    elif isinstance(target, dict):
        target[rng.choice(["extra", "run_id", "layers"])] = rng.choice(ODD_VALUES)
    else:
        target.append(rng.choice(ODD_VALUES))
    return damaged


class CompiledSchemas(unittest.TestCase):
    def test_accept_exactly_what_the_library_accepts(self) -> None:
        rng = random.Random(5)
        refused = 0
        for artifact, payload in payloads():
            for _ in range(250):
                damaged = damage(payload, rng)
                version = payload_version(artifact, damaged)
                accepted = compile_schema(load_schema(artifact, version))(damaged)
                self.assertEqual(accepted, _validator(artifact, version).is_valid(damaged), damaged)
                refused += not accepted
                messages = validate_artifact_schema(artifact, damaged)
                self.assertEqual(messages == [], accepted)
                self.assertTrue(all(len(message) < 300 for message in messages))
        self.assertGreater(refused, 1000)

    def test_do_not_compile_with_keywords_they_do_not_know(self) -> None:
        with self.assertRaises(ValueError) as caught:
            compile_schema({"type": "object", "patternProperties": {}})
        self.assertEqual(str(caught.exception), "schema keywords not known: patternProperties")

    def test_leave_subclasses_to_the_library(self) -> None:
        class Probability(float):
            pass

        event = make_event()
        event["layers"][0]["top1_prob"] = Probability(event["layers"][0]["top1_prob"])
        self.assertEqual(validate_artifact_schema("raw_event", event), [])


class Documents(unittest.TestCase):
    def test_are_valid_json_schema_and_describe_each_field(self) -> None:
        from jsonschema import Draft202012Validator

        for artifact in ARTIFACT_NAMES:
            for version in ("v0.1.0", "v0.2.0"):
                schema = load_schema(artifact, version)
                Draft202012Validator.check_schema(schema)
                self.assertFalse(schema["additionalProperties"])
        properties = load_schema("raw_event", "v0.2.0")["$defs"]["layer"]["properties"]
        silent = [name for name, rule in properties.items() if "description" not in rule]
        self.assertEqual(silent, ["layer_kind"])


class Copies(unittest.TestCase):
    def test_at_the_root_are_the_packages_own_byte_for_byte(self) -> None:
        root = Path(__file__).resolve().parent.parent
        folders = (root / "schema", root / "moe_weights" / "routing" / "schemas")
        shown, shipped = (
            {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*.json")
            }
            for folder in folders
        )
        self.assertEqual(
            shown,
            shipped,
            "run: cp -r moe_weights/routing/schemas/v0.1.0 moe_weights/routing/schemas/v0.2.0 "
            "schema/",
        )
        self.assertEqual(len(shown), 8)


class Messages(unittest.TestCase):
    def test_name_place_rule_and_value(self) -> None:
        event = make_event()
        event["layers"][1]["entropy"] = -1
        event["layers"][0]["router_probs"] = "x" * 100
        event["token_id"] = 10**300
        event["token_text"] = (1,)
        event["timing_ms"] = {"decode_start": object(), "decode_end": 1, "decode_duraton": 2}
        self.assertEqual(
            validate_run_bundle_schema(make_manifest(), [make_event(), event], {}),
            [
                ("raw_events[1].layers[0].router_probs: expected array, got "
                f'"{"x" * 59}…'),
                "raw_events[1].layers[1].entropy: must be at least 0, got -1",
                ('raw_events[1].timing_ms.decode_duraton: unknown key; did you mean '
                '"decode_duration"?'),
                "raw_events[1].timing_ms.decode_duration: required key is missing",
                "raw_events[1].timing_ms.decode_start: expected number, got a object",
                ("raw_events[1].token_id: must be at most 9223372036854775807, got an integer of "
                "997 bits"),
                "raw_events[1].token_text: expected string, got a tuple of 1 items",
                "layout.schema_version: required key is missing",
                "layout.run_id: required key is missing",
                "layout.layout_id: required key is missing",
                "layout.layers: required key is missing",
            ],
        )  # fmt: skip

    def test_start_with_the_artifact_unless_told_otherwise(self) -> None:
        manifest = make_manifest()
        del manifest["run_id"]
        self.assertEqual(
            validate_artifact_schema("manifest", manifest),
            ["manifest.run_id: required key is missing"],
        )
        self.assertEqual(
            validate_artifact_schema("manifest", [], location="here"),
            ["here: expected object, got a list of 0 items"],
        )
        self.assertEqual(
            validate_artifact_schema("manifest", {**manifest, "run_id": float("nan")}),
            ["manifest.run_id: nan is not finite; no non-standard JSON numeric values"],
        )

    def test_name_the_artifacts_when_one_is_unknown(self) -> None:
        with self.assertRaises(ValueError) as caught:
            validate_artifact_schema("events", {})
        self.assertEqual(
            str(caught.exception),
            "unknown artifact 'events'; known are manifest, raw_event, layout, derived_event, "
            "motif_ledger, contingency",
        )

    def test_are_none_for_whole_bundles(self) -> None:
        for bundle in (make_bundle(), make_routed_bundle()):
            self.assertEqual(validate_run_bundle_schema(**json.loads(json.dumps(bundle))), [])


if __name__ == "__main__":
    unittest.main()
