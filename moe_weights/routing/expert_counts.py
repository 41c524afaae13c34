"""What is kept of a source that counted selections and recorded no tokens?

`expert_counts.json`: load per layer and expert. It is no bundle and holds no events, so that
nothing in it can be mistaken for a token's choice; statistics read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from moe_weights.atomic_files import write_json_atomic
from moe_weights.errors import InvalidDataError
from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.bundle_files import read_json_object
from moe_weights.routing.bundle_writer import new_folder, publish_bundle, refuse_existing
from moe_weights.routing.load_counts import LayerCounts
from moe_weights.routing.run_ids import bundle_path

EXPERT_COUNTS_FILE = "expert_counts.json"
EXPERT_COUNTS_VERSION = "expert_counts/v0.1.0"
MAX_COUNT = 2**63 - 1  # what a column of whole numbers holds


def write_expert_counts(
    root_dir: Path,
    run_id: str,
    *,
    model_id: str,
    source: Mapping[str, str],
    counts: Iterable[LayerCounts],
) -> Path:
    """Write counts beside the bundles of a run.

    Args:
        root_dir: Folder of all bundles.
        run_id: Name of the folder below it.
        model_id: Name of the model.
        source: What they were read from.
        counts: By layer.

    Returns:
        The folder.

    Raises:
        UsageError: the run id is no plain path.
        BundleExistsError: there is something at its place.
        OutputError: it cannot be written.
    """
    folder = bundle_path(root_dir, run_id)
    refuse_existing(folder)
    payload: JsonObject = {
        "schema_version": EXPERT_COUNTS_VERSION,
        "run_id": run_id,
        "model_id": model_id,
        "source": dict(source),
        "not_captured": ["tokens", "router_probs", "combine_weights", "phase"],
        "layers": [
            {
                "layer_index": layer.layer,
                "num_total_experts": layer.num_total_experts,
                "num_active_experts": layer.num_active_experts,
                "selections": layer.selections,
            }
            for layer in counts
        ],
    }
    with new_folder(folder) as unfinished:
        write_json_atomic(unfinished / EXPERT_COUNTS_FILE, payload)
        publish_bundle(unfinished, folder)
    return folder


def load_expert_counts(folder: Path) -> list[LayerCounts]:
    """Read counts that `write_expert_counts` wrote.

    Raises:
        InvalidDataError: the file says something else.
        BundleError: it is no JSON.
    """
    path = folder / EXPERT_COUNTS_FILE
    payload = read_json_object(path)
    if payload.get("schema_version") != EXPERT_COUNTS_VERSION:
        raise InvalidDataError(
            f"{path}: schema_version is {payload.get('schema_version')!r}, expected "
            f"{EXPERT_COUNTS_VERSION!r}"
        )
    layers = payload.get("layers")
    if not isinstance(layers, list):
        raise InvalidDataError(f"{path}: $.layers must be a list")
    counts = [_to_counts(layer, f"{path}: $.layers[{n}]") for n, layer in enumerate(layers)]
    for before, after in itertools.pairwise(counts):
        if before.layer >= after.layer:
            raise InvalidDataError(
                f"{path}: layer {after.layer} stands behind layer {before.layer}; each stands "
                "once, in ascending order"
            )
    return counts


def _to_counts(layer: JsonObject, place: str) -> LayerCounts:
    names = ("layer_index", "num_total_experts", "num_active_experts", "selections")
    if not isinstance(layer, dict) or any(name not in layer for name in names):
        raise InvalidDataError(f"{place} must have {', '.join(names)}")
    index, n_experts, n_active, selections = (layer[name] for name in names)
    if not _is_count(index) or not _is_count(n_experts) or n_experts < 1:
        raise InvalidDataError(f"{place}: layer_index and num_total_experts must be counts")
    if n_active is not None and not (_is_count(n_active) and 1 <= n_active <= n_experts):
        raise InvalidDataError(f"{place}.num_active_experts must be null or 1..{n_experts}")
    if (
        not isinstance(selections, list)
        or len(selections) != n_experts
        or not all(_is_count(value) for value in selections)
    ):
        raise InvalidDataError(f"{place}.selections must be {n_experts} counts")
    if sum(selections) > MAX_COUNT:
        raise InvalidDataError(f"{place}.selections add up to more than {MAX_COUNT}")
    return LayerCounts(
        layer=index,
        num_total_experts=n_experts,
        num_active_experts=n_active,
        selections=selections,
        tokens=None,
        tokens_not_captured=None,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT
