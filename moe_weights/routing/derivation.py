"""Which tokens were routed alike?

A layer motif is an exact choice: the chosen experts of one layer, in the router's order. A global
motif is the sequence of a token's layer motifs. Names count first appearances within one run and
say nothing about any other run.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from moe_weights.routing.artifacts import (
    CONTINGENCY_VERSION,
    DERIVED_VERSION,
    MOTIF_LEDGER_VERSION,
    JsonObject,
)

# What this module's derivation is called in a manifest, also by a run that derives nothing yet.
DERIVATION_VERSION = "motifs/v0.1.0"
DERIVATION_CONFIG_ID = "motifs/default"


def derive_bundle_artifacts(bundle: Mapping[str, Any]) -> JsonObject:
    """Name every distinct routing of a run and count how often names follow one another.

    Args:
        bundle: From `load_run_bundle`; not modified.

    Returns:
        `derived_events` (one per token), `motif_ledger` and `contingency`, for `write_run_bundle`.
        Layers whose choice was not captured have no motif. Ids are such as `l00_004` (layer 0,
        fifth choice to appear) and `g_012`; equal bundles give equal ids.
    """
    manifest = bundle["manifest"]
    names = _MotifNames()
    derived_events = []
    for event in bundle["raw_events"]:
        token = event["token_index"]
        motif_of = {layer["layer_index"]: names.of_layer(layer, token) for layer in event["layers"]}
        derived_events.append(
            {
                "event_type": "token_derived",
                "schema_version": DERIVED_VERSION,
                **_identity(manifest),
                "token_index": token,
                "derived_payload": {
                    "global_motif": {"motif_id": names.of_token(motif_of.values(), token)},
                    "layer_motifs": [
                        {"layer_index": layer, "motif_id": motif_id}
                        for layer, motif_id in motif_of.items()
                        if motif_id is not None
                    ],
                },
            }
        )
    return {
        "derived_events": derived_events,
        "motif_ledger": {
            "schema_version": MOTIF_LEDGER_VERSION,
            **_identity(manifest),
            "ledger_payload": names.to_ledger(),
        },
        "contingency": {
            "schema_version": CONTINGENCY_VERSION,
            **_identity(manifest),
            "contingency_payload": names.to_contingency(),
        },
    }


@dataclass(slots=True)
class _Motif:
    motif_id: str
    first_token_index: int
    count: int = 0


class _MotifNames:
    def __init__(self) -> None:
        self._by_layer: dict[int, dict[tuple[int, ...], _Motif]] = {}
        self._by_token: dict[tuple[str, ...], _Motif] = {}
        self._pairs: dict[tuple[str, str], int] = {}

    def of_layer(self, layer: JsonObject, token: int) -> str | None:
        if layer["topk_indices"] is None:
            return None
        index = int(layer["layer_index"])
        motifs = self._by_layer.setdefault(index, {})
        name = f"l{index:02d}_{len(motifs):03d}"
        motif = motifs.setdefault(tuple(layer["topk_indices"]), _Motif(name, token))
        motif.count += 1
        return motif.motif_id

    def of_token(self, motif_ids: Collection[str | None], token: int) -> str:
        """Name a token by the motifs of its layers in order; None where none was captured."""
        for one, following in itertools.pairwise(motif_ids):
            if one is not None and following is not None:
                self._pairs[one, following] = self._pairs.get((one, following), 0) + 1
        captured = tuple(motif_id for motif_id in motif_ids if motif_id is not None)
        name = f"g_{len(self._by_token):03d}"
        motif = self._by_token.setdefault(captured, _Motif(name, token))
        motif.count += 1
        return motif.motif_id

    def to_ledger(self) -> JsonObject:
        return {
            "fingerprint": "the chosen experts of a layer, in order; exact",
            "scope": "run",
            "layer_motifs": [
                {"layer_index": layer, "topk_indices": list(chosen), **_described(motif)}
                for layer, motifs in sorted(self._by_layer.items())
                for chosen, motif in motifs.items()
            ],
            "global_motifs": [
                {"layer_motif_ids": list(motif_ids), **_described(motif)}
                for motif_ids, motif in self._by_token.items()
            ],
        }

    def to_contingency(self) -> JsonObject:
        return {
            "scope": "run",
            "unit": "tokens",
            "layer_pairs": [
                {"motif_id": one, "next_layer_motif_id": following, "count": count}
                for (one, following), count in sorted(self._pairs.items())
            ],
        }


def _described(motif: _Motif) -> JsonObject:
    return {
        "motif_id": motif.motif_id,
        "count": motif.count,
        "first_token_index": motif.first_token_index,
    }


def _identity(manifest: Mapping[str, Any]) -> JsonObject:
    return {
        "run_id": manifest["run_id"],
        "derivation_version": manifest["derivation_version"],
        "derivation_config_id": manifest["derivation_config_id"],
    }
