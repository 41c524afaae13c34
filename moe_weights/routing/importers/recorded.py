"""How does an array of chosen experts become a bundle, and what must be said beside it?

An engine's array says which experts were chosen and nothing else: scores, weights and biases stay
"not captured". Its layer axis counts either decoder layers or MoE layers; which one is told by the
lengths alone, and any other length is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing.artifacts import MANIFEST_FILE, JsonObject
from moe_weights.routing.builders import build_manifest, check_text
from moe_weights.routing.bundle_files import read_json_object
from moe_weights.routing.derivation import DERIVATION_CONFIG_ID, DERIVATION_VERSION
from moe_weights.routing.issues import BundleError
from moe_weights.routing.layer_trace import check_integer
from moe_weights.routing.routed_layers import Phase, RoutedLayerInput, build_routed_token_event
from moe_weights.routing.run_ids import bundle_path
from moe_weights.routing.timestamps import now_rfc3339
from moe_weights.routing.working_bundle import create_working_bundle
from moe_weights.routing.working_folder import discard_working_bundle, working_path

Array: TypeAlias = npt.NDArray[Any]

IMPORT_METHOD = "import"  # in the manifest's capture_config
_NOT_CAPTURED = ("selection_bias", "selection_scores", "group_limit", "shared_expert_weights")
_NO_EXPERT = -1  # what engines fill unused places with


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedModel:
    """What an array of chosen experts does not say of its model.

    Attributes:
        model_id: Name of the model.
        n_experts: N, routed experts of a layer.
        moe_layers: Decoder layers that have routed experts, ascending.
        n_layers: Decoder layers; None when not known.

    Raises:
        UsageError: numbers that contradict one another, or an empty name.
        TypeError: a number that is no integer.
    """

    model_id: str
    n_experts: int
    moe_layers: tuple[int, ...]
    n_layers: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no model."""
        check_text(self.model_id, "model_id")
        check_integer(self.n_experts, "n_experts", minimum=1)
        for layer in self.moe_layers:
            check_integer(layer, "moe_layers", minimum=0)
        if not self.moe_layers or list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise UsageError(
                f"moe_layers are {list(self.moe_layers)[:8]}; give at least one, ascending"
            )
        if self.n_layers is not None:
            check_integer(self.n_layers, "n_layers", minimum=1)
            if self.moe_layers[-1] >= self.n_layers:
                raise UsageError(
                    f"layer {self.moe_layers[-1]} has experts, the model has {self.n_layers} "
                    "decoder layers (from 0)"
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedToken:
    """One token of a record.

    Attributes:
        phase: Whether it was part of the prompt.
        chosen: (layers of the array, k) experts, -1 where none was recorded.
        token_id: None when the record has none.
    """

    phase: Phase
    chosen: Array
    token_id: int | None = None


def map_layers(n_axis: int, model: RoutedModel) -> list[tuple[int, int]]:
    """Return (place on the array's layer axis, decoder layer) of each MoE layer.

    Args:
        n_axis: Length of the axis.
        model: Says which layers have experts.

    Raises:
        UsageError: the axis counts neither the MoE layers nor all layers.
    """
    layers = model.moe_layers
    if n_axis == len(layers):
        return list(enumerate(layers))
    if n_axis == model.n_layers:
        return [(layer, layer) for layer in layers]
    every = "" if model.n_layers is None else f" and not all {model.n_layers} decoder layers"
    raise UsageError(
        f"the array has {n_axis} layers; these are not the {len(layers)} layers with experts"
        f"{every}; name the decoder layer of each with --layers"
        + ("" if model.n_layers is not None else ", or the number of all with --num-layers")
    )


def write_recorded_bundle(
    root_dir: Path,
    run_id: str,
    tokens: Iterable[RecordedToken],
    model: RoutedModel,
    *,
    n_axis: int,
    prompt_text: str,
    source: dict[str, str],
) -> tuple[Path, int]:
    """Write a bundle from an engine's tokens, one at a time.

    Args:
        root_dir: Folder of all bundles.
        run_id: Id of the bundle.
        tokens: In order.
        model: Names it, and says which layers have experts.
        n_axis: Length of the tokens' layer axis.
        prompt_text: Text of the prompt; "" when the record has none.
        source: What was read, for the manifest.

    Returns:
        (folder of the bundle, tokens written).

    Raises:
        UsageError: the layers do not fit, or the run id is no plain path.
        InvalidDataError: an expert outside 0..N-1, or one chosen twice by a token.
        BundleExistsError, OutputError: see `create_working_bundle`.
    """
    places = map_layers(n_axis, model)
    tokens = list(tokens)  # rows of an array that is in memory already
    manifest = build_manifest(
        run_id=run_id,
        created_at=now_rfc3339(),
        model_id=model.model_id,
        tokenizer_id=model.model_id,
        prompt_text=prompt_text,
        derivation_version=DERIVATION_VERSION,
        derivation_config_id=DERIVATION_CONFIG_ID,
        capture_config={
            "method": IMPORT_METHOD,
            **source,
            "moe_layers": [
                {"moe_ordinal": ordinal, "layer_index": layer, "axis_place": place}
                for ordinal, (place, layer) in enumerate(places)
            ],
        },
        bundle_version="v0.2.0",
    )
    _discard_killed_import(root_dir, run_id)
    with create_working_bundle(root_dir, manifest, durable=False) as bundle:
        try:
            for event in _to_events(tokens, run_id, places, model.n_experts):
                bundle.append(event)
            n_tokens = bundle.n_events
            if n_tokens == 0:
                raise InvalidDataError("the record holds no tokens")
            return bundle.promote(), n_tokens
        except BaseException:
            bundle.discard()  # the source is still there: nothing is worth keeping
            raise


def _discard_killed_import(root_dir: Path, run_id: str) -> None:
    """Remove what an import left that was killed: its source is still there to be read again."""
    path = working_path(bundle_path(root_dir, run_id)) / MANIFEST_FILE
    try:
        config = read_json_object(path).get("capture_config")
    except BundleError:
        return  # nothing there, or nothing that is known to be an import
    if isinstance(config, dict) and config.get("method") == IMPORT_METHOD:
        discard_working_bundle(root_dir, run_id)


def to_choices(values: object, what: str) -> Array:
    """Return recorded experts as int64.

    Args:
        values: Nested sequences or an array of integers, (tokens, layers, k).
        what: How messages call them.

    Raises:
        InvalidDataError: they are something else.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise InvalidDataError(f"{what} is no array [tokens, layers, k]: {error}") from error
    if array.ndim != 3 or 0 in array.shape[1:] or array.dtype.kind not in "iu":
        raise InvalidDataError(
            f"{what} must be integers of shape [tokens, layers, k], got {array.dtype} "
            f"{list(array.shape)}"
        )
    return to_int64(array, what)


def to_int64(array: Array, what: str) -> Array:
    """Return integers as int64.

    Raises:
        InvalidDataError: one is beyond it; a cast would make it negative without a word.
    """
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InvalidDataError(f"{what} holds {array.max()}, beyond 64 bits with a sign")
    return array.astype(np.int64)


def to_ids(values: object, what: str) -> list[int]:
    """Return token ids.

    Raises:
        InvalidDataError: not a row of integers.
    """
    ids = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(ids, list | tuple) or any(
        isinstance(item, bool) or not isinstance(item, int) for item in ids
    ):
        raise InvalidDataError(f"{what} must be a row of token ids")
    return list(ids)


def _to_events(
    tokens: Sequence[RecordedToken],
    run_id: str,
    places: Sequence[tuple[int, int]],
    n_experts: int,
) -> Iterator[JsonObject]:
    # An array may have more places than experts are chosen: where nothing was recorded, only other
    # tokens tell how many of them are used.
    n_active = max((_n_recorded(token.chosen) for token in tokens), default=0)
    for index, token in enumerate(tokens):
        yield build_routed_token_event(
            run_id=run_id,
            token_index=index,
            phase=token.phase,
            token_id=token.token_id,
            context_length=index,
            layers=[
                _to_layer(
                    layer,
                    token.chosen[place],
                    n_experts,
                    n_active,
                    f"token {index}, layer {layer}",
                )
                for place, layer in places
            ],
        )


def _n_recorded(chosen: Array) -> int:
    """Return the most experts that a layer of a token, (layers, k), has chosen."""
    return int((chosen != _NO_EXPERT).sum(axis=1).max(initial=0))


def _to_layer(
    layer: int, row: Array, n_experts: int, n_active: int, where: str
) -> RoutedLayerInput:
    chosen = [int(expert) for expert in row if expert != _NO_EXPERT]
    outside = [expert for expert in chosen if not 0 <= expert < n_experts]
    if outside:
        raise InvalidDataError(
            f"{where}: expert {outside[0]} was chosen, the layer has {n_experts} (from 0); check "
            "the number of experts and which layers have them"
        )
    was_recorded = bool(chosen) and not _is_fill(chosen)
    if was_recorded and len(set(chosen)) < len(chosen):
        raise InvalidDataError(f"{where}: {chosen} names an expert twice; the record is damaged")
    return RoutedLayerInput(
        layer_index=layer,
        num_total_experts=n_experts,
        num_active_experts=len(chosen) or n_active or len(row),
        topk_indices=chosen if was_recorded else None,
        not_captured=_NOT_CAPTURED,
    )


def _is_fill(chosen: list[int]) -> bool:
    """Whether a row is a buffer that nothing was written to: one value in all of several places."""
    return len(chosen) > 1 and len(set(chosen)) == 1
