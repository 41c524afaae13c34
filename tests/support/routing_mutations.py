"""Changes of a bundle's payloads, each with what must be said about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.routing_bundles import make_manifest, make_routed_bundle

Bundle = dict[str, Any]
TRACE, DERIVED = "raw_trace.ndjson", "derived.ndjson"


@dataclass(frozen=True)
class Mutation:
    """A change and what must be said about it: scope, code, and file with line."""

    change: Callable[[Bundle], object]
    scope: str
    code: str
    place: str


def layer(bundle: Bundle, number: int = 0, token: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = bundle["raw_events"][token]["layers"][number]
    return found


def put(**fields: Any) -> Callable[[Bundle], object]:
    """Change fields of layer 0 of token 1."""
    return lambda bundle: layer(bundle).update(fields)


def put_event(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["raw_events"][1].update(fields)


def put_in(key: str, **fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle[key].update(fields)


def put_derived(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["derived_events"][1].update(fields)


def put_position(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["layout"]["layers"][0]["positions"][0].update(fields)


def drop(key: str, name: str) -> Callable[[Bundle], object]:
    return lambda bundle: bundle[key].pop(name)


def drop_in_event(name: str) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["raw_events"][1].pop(name)


def drop_in_layer(name: str) -> Callable[[Bundle], object]:
    return lambda bundle: layer(bundle).pop(name)


def drop_positions(number: int, count: int) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["layout"]["layers"][number]["positions"].__delitem__(
        slice(-count, None)
    )


def event_code(code: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "event", code, f"{TRACE}:2")


def event_schema(code: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "schema", code, f"{TRACE}:2")


def bundle_code(code: str, place: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "bundle", code, place)


def file_schema(code: str, place: str, change: Callable[[Bundle], object]) -> Mutation:
    return Mutation(change, "schema", code, place)


def timing(**fields: Any) -> Callable[[Bundle], object]:
    return lambda bundle: bundle["raw_events"][1]["timing_ms"].update(fields)


def make_uniform(bundle: Bundle) -> None:
    layer(bundle)["router_probs"] = [0.5, 0.5, 0.5, 0.5]


def swap_choice(bundle: Bundle) -> None:
    chosen = layer(bundle)
    worst = min(range(4), key=chosen["router_probs"].__getitem__)
    chosen["topk_indices"][1] = worst
    chosen["topk_probs"][1] = chosen["router_probs"][worst]
    chosen["top1_top2_margin"] = chosen["topk_probs"][0] - chosen["topk_probs"][1]


def add_expert(bundle: Bundle) -> None:
    changed = layer(bundle, 1)
    changed.update(num_total_experts=3, router_probs=[*changed["router_probs"], 0.0])


def repeat_layer(bundle: Bundle) -> None:
    bundle["raw_events"][1]["layers"].append(layer(bundle))


def repeat_layout_layer(bundle: Bundle) -> None:
    bundle["layout"]["layers"].append(bundle["layout"]["layers"][0])


def use_new_event(bundle: Bundle) -> None:
    bundle["raw_events"][1] = make_routed_bundle(2)["raw_events"][1]


def use_new_manifest(bundle: Bundle) -> None:
    bundle["manifest"] = make_manifest(bundle_version="v0.2.0")


MUTATIONS = {
    # contradictions within an event
    "a duration that is not the span": event_code(
        "decode_duration_mismatch", timing(decode_duration=99.0)
    ),
    "a layer twice": event_code("duplicate_layer_index", repeat_layer),
    "too few probabilities": event_code(
        "router_probs_length_mismatch", lambda b: layer(b)["router_probs"].pop()
    ),
    "more active experts than experts": event_code(
        "num_active_experts_exceeds_num_total_experts", put(num_active_experts=5)
    ),
    "too few chosen": event_code("topk_length_mismatch", lambda b: layer(b)["topk_indices"].pop()),
    "too few chosen probabilities": event_code(
        "topk_length_mismatch", lambda b: layer(b)["topk_probs"].pop()
    ),
    "an expert chosen twice": event_code("duplicate_topk_index", put(topk_indices=[1, 1])),
    "an expert that is not there": event_code("topk_index_out_of_bounds", put(topk_indices=[1, 4])),
    "probabilities that sum to 2": event_code("router_probs_sum_mismatch", make_uniform),
    "another probability of a chosen expert": event_code(
        "topk_prob_mismatch", put(topk_probs=[0.5, 0.25])
    ),
    "another top probability": event_code("top1_prob_mismatch", put(top1_prob=0.25)),
    "another margin": event_code("top1_top2_margin_mismatch", put(top1_top2_margin=0.0)),
    "another entropy": event_code("entropy_mismatch", put(entropy=0.0)),
    "another normalised entropy": event_code(
        "normalized_entropy_mismatch", put(normalized_entropy=1.0)
    ),
    "a choice that is not the best": event_code("topk_selection_mismatch", swap_choice),
    # contradictions within the layout
    "a layout layer twice": Mutation(
        repeat_layout_layer, "layout", "duplicate_layer_index", "layout.json"
    ),
    "a position twice": Mutation(
        put_position(expert_index=1), "layout", "duplicate_expert_index", "layout.json"
    ),
    # contradictions between payloads
    "a token twice": bundle_code(
        "duplicate_raw_token_index", f"{TRACE}:2", put_event(token_index=0)
    ),
    "a token left out": bundle_code(
        "raw_token_index_sequence_invalid", f"{TRACE}:2", lambda b: b["raw_events"].pop(1)
    ),
    "tokens out of order": bundle_code(
        "raw_token_index_sequence_invalid", f"{TRACE}:1", lambda b: b["raw_events"].reverse()
    ),
    "a newer event": bundle_code("raw_event_schema_version_mismatch", f"{TRACE}:2", use_new_event),
    "a newer manifest": bundle_code(
        "raw_event_schema_version_mismatch", f"{TRACE}:1", use_new_manifest
    ),
    "an event of another run": bundle_code(
        "run_id_mismatch", f"{TRACE}:2", put_event(run_id="other")
    ),
    "a layout of another run": bundle_code(
        "run_id_mismatch", "layout.json", put_in("layout", run_id="other")
    ),
    "a ledger of another run": bundle_code(
        "run_id_mismatch", "motif_ledger.json", put_in("motif_ledger", run_id="other")
    ),
    "a contingency of another run": bundle_code(
        "run_id_mismatch", "contingency.json", put_in("contingency", run_id="other")
    ),
    "a layer that changes its size": bundle_code(
        "raw_layer_expert_count_inconsistent", f"{TRACE}:2", add_expert
    ),
    "a layer that the layout lacks": bundle_code(
        "layout_expert_count_mismatch", "layout.json", lambda b: b["layout"]["layers"].pop()
    ),
    "a layout layer with too few experts": bundle_code(
        "layout_expert_count_mismatch", "layout.json", drop_positions(0, 1)
    ),
    "a gap in the experts of the layout": bundle_code(
        "layout_expert_index_set_mismatch", "layout.json", put_position(expert_index=9)
    ),
    "another derivation of a token": bundle_code(
        "derivation_version_mismatch", f"{DERIVED}:2", put_derived(derivation_version="v9")
    ),
    "other settings of a derivation": bundle_code(
        "derivation_config_mismatch", f"{DERIVED}:2", put_derived(derivation_config_id="c9")
    ),
    "another derivation of the ledger": bundle_code(
        "derivation_version_mismatch",
        "motif_ledger.json",
        put_in("motif_ledger", derivation_version="v9"),
    ),
    "a token derived twice": bundle_code(
        "duplicate_derived_token_index", f"{DERIVED}:2", put_derived(token_index=0)
    ),
    "a token derived that is not there": bundle_code(
        "derived_token_index_missing_from_raw", f"{DERIVED}:2", put_derived(token_index=9)
    ),
    # schema: manifest
    "no run id": file_schema("required", "manifest.json", drop("manifest", "run_id")),
    "no derivation version": file_schema(
        "required", "manifest.json", drop("manifest", "derivation_version")
    ),
    "an empty model id": file_schema("minLength", "manifest.json", put_in("manifest", model_id="")),
    "a key that nobody knows": file_schema(
        "additionalProperties", "manifest.json", put_in("manifest", modelid="x")
    ),
    "a date without T": file_schema(
        "format", "manifest.json", put_in("manifest", created_at="2026-03-20 12:00:00+00:00")
    ),
    "a day that never was": file_schema(
        "format", "manifest.json", put_in("manifest", created_at="2026-02-30T12:00:00Z")
    ),
    "a seed that is a boolean": file_schema("type", "manifest.json", put_in("manifest", seed=True)),
    "a prompt that is a text": file_schema(
        "type", "manifest.json", put_in("manifest", prompt="hello")
    ),
    "more than the prompt's text": file_schema(
        "additionalProperties", "manifest.json", put_in("manifest", prompt={"text": "", "id": 1})
    ),
    "a configuration that is a list": file_schema(
        "type", "manifest.json", put_in("manifest", generation_config=[1])
    ),
    "a version that nobody knows": file_schema(
        "const", "manifest.json", put_in("manifest", schema_version="manifest/v9")
    ),
    "a version list without the layout": file_schema(
        "required",
        "manifest.json",
        lambda b: b["manifest"]["artifact_versions"].pop("layout_schema_version"),
    ),
    # schema: events
    "an event without layers": event_schema("minItems", put_event(layers=[])),
    "an event of another type": event_schema("const", put_event(event_type="token_partial")),
    "an event of an unknown version": event_schema("const", put_event(schema_version="raw/v9")),
    "a token index below 0": event_schema("minimum", put_event(token_index=-1)),
    "a token index that is 1.0": event_schema("type", put_event(token_index=1.0)),
    "a token id that is true": event_schema("type", put_event(token_id=True)),
    "a token id of 70 bits": event_schema("maximum", put_event(token_id=2**70)),
    "a text that is null": event_schema("type", put_event(token_text=None)),
    "a field that is not in the event": event_schema("additionalProperties", put_event(extra=1)),
    "an event without timing": event_schema("required", drop_in_event("timing_ms")),
    "a duration below 0": event_schema("minimum", timing(decode_duration=-1.0)),
    "a start that is a text": event_schema("type", timing(decode_start="10")),
    "a layer of another kind": event_schema("enum", put(layer_kind="dense")),
    "no active experts": event_schema("minimum", put(num_active_experts=0)),
    "no experts": event_schema("minimum", put(num_total_experts=0)),
    "no probabilities": event_schema("minItems", put(router_probs=[])),
    "a probability above 1": event_schema("maximum", put(router_probs=[1.5, 0.0, 0.0, 0.0])),
    "a probability that is true": event_schema("type", put(router_probs=[True, 0, 0, 0])),
    "an index below 0": event_schema("minimum", put(topk_indices=[-1, 0])),
    "an index that is 0.0": event_schema("type", put(topk_indices=[0.0, 1])),
    "an entropy below 0": event_schema("minimum", put(entropy=-0.5)),
    "a normalised entropy just above 1": event_schema(
        "maximum", put(normalized_entropy=1.0000000000000002)
    ),
    "a layer without its margin": event_schema("required", drop_in_layer("top1_top2_margin")),
    "layers that are an object": event_schema("type", put_event(layers={"0": {}})),
    "an integer beyond any float": event_schema("type", put(entropy=10**400)),
    # schema: the rest
    "a layout without layers": file_schema("minItems", "layout.json", put_in("layout", layers=[])),
    "a layout without an id": file_schema("required", "layout.json", drop("layout", "layout_id")),
    "a position without z": file_schema(
        "required",
        "layout.json",
        lambda b: b["layout"]["layers"][0]["positions"][0].pop("z"),
    ),
    "a position of an expert below 0": file_schema(
        "minimum", "layout.json", put_position(expert_index=-1)
    ),
    "a derived event without payload": file_schema(
        "required", f"{DERIVED}:2", lambda b: b["derived_events"][1].pop("derived_payload")
    ),
    "a derived payload that is a list": file_schema(
        "type", f"{DERIVED}:2", put_derived(derived_payload=[])
    ),
    "a ledger payload that is null": file_schema(
        "type", "motif_ledger.json", put_in("motif_ledger", ledger_payload=None)
    ),
    "a contingency with a label": file_schema(
        "additionalProperties", "contingency.json", put_in("contingency", label="x")
    ),
    # numbers that JSON lacks
    "NaN in an event": Mutation(put(entropy=math.nan), "file", "non_standard_number", f"{TRACE}:2"),
    "Infinity in the manifest": Mutation(
        put_in("manifest", generation_config={"t": math.inf}),
        "file",
        "non_standard_number",
        "manifest.json",
    ),
    "-Infinity in a derived event": Mutation(
        put_derived(derived_payload={"x": -math.inf}),
        "file",
        "non_standard_number",
        f"{DERIVED}:2",
    ),
}  # fmt: skip
