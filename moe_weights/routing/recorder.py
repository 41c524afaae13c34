"""How does a model's loop gather its tokens into a bundle without importing a framework?"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_weights.errors import InvalidDataError
from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.builders import (
    build_layer_grid_layout,
    build_manifest,
    build_token_complete_event,
    check_text,
)
from moe_weights.routing.bundle_writer import write_run_bundle
from moe_weights.routing.layer_trace import MoELayerCaptureInput, PyTorchMoELayerCaptureInput


class PyTorchRunBundleRecorder:
    """Gathers v0.1.0 events of one run in memory; a refused token leaves no trace.

    For runs that must survive a crash, see `create_working_bundle`.
    """

    def __init__(
        self,
        *,
        run_id: str,
        created_at: str,
        model_id: str,
        tokenizer_id: str,
        prompt_text: str,
        derivation_version: str,
        derivation_config_id: str,
        seed: int | None = None,
        generation_config: Mapping[str, Any] | None = None,
        capture_config: Mapping[str, Any] | None = None,
        layout_id: str = "default-grid",
    ) -> None:
        """Start a run; see `build_manifest` for the arguments and what is refused.

        Args:
            run_id: Path of the bundle below the folder of bundles.
            created_at: RFC 3339 date-time with offset.
            model_id: The model.
            tokenizer_id: The tokenizer.
            prompt_text: The prompt; may be empty.
            derivation_version: Version of the derivation.
            derivation_config_id: Settings of the derivation.
            seed: Seed of sampling.
            generation_config: Free JSON object; copied.
            capture_config: The same for the capture.
            layout_id: Name of the layout that is made of the layers seen.
        """
        self._manifest = build_manifest(
            run_id=run_id,
            created_at=created_at,
            model_id=model_id,
            tokenizer_id=tokenizer_id,
            prompt_text=prompt_text,
            derivation_version=derivation_version,
            derivation_config_id=derivation_config_id,
            seed=seed,
            generation_config=generation_config,
            capture_config=capture_config,
        )
        check_text(layout_id, "layout_id")
        self._layout_id = layout_id
        self._raw_events: list[JsonObject] = []
        self._expert_counts: dict[int, int] = {}

    @property
    def manifest(self) -> JsonObject:
        """A copy of the manifest."""
        return copy.deepcopy(self._manifest)

    @property
    def raw_events(self) -> list[JsonObject]:
        """A copy of the events so far."""
        return copy.deepcopy(self._raw_events)

    def record_token_complete(
        self,
        *,
        token_index: int,
        token_id: int,
        token_text: str,
        context_length: int,
        decode_start_ms: float,
        decode_end_ms: float,
        layer_inputs: Iterable[MoELayerCaptureInput | PyTorchMoELayerCaptureInput],
    ) -> JsonObject:
        """Record a token; see `build_token_complete_event` for the arguments.

        Returns:
            A copy of the event.

        Raises:
            InvalidDataError: the event is refused, or a layer has another number of experts than
                in earlier tokens; nothing was recorded.
        """
        event = build_token_complete_event(
            run_id=self._manifest["run_id"],
            token_index=token_index,
            token_id=token_id,
            token_text=token_text,
            context_length=context_length,
            decode_start_ms=decode_start_ms,
            decode_end_ms=decode_end_ms,
            layer_inputs=layer_inputs,
        )
        counts = {layer["layer_index"]: layer["num_total_experts"] for layer in event["layers"]}
        for index, count in counts.items():
            known = self._expert_counts.get(index, count)
            if known != count:
                raise InvalidDataError(
                    f"layer {index} has {count} experts in token {token_index}, in earlier tokens "
                    f"{known}; a layer's expert count never changes within a run"
                )
        self._expert_counts |= counts
        self._raw_events.append(event)
        return copy.deepcopy(event)

    def record_generated_token(
        self,
        *,
        token_id: int,
        token_text: str,
        context_length: int,
        decode_start_ms: float,
        decode_end_ms: float,
        layer_inputs: Iterable[MoELayerCaptureInput | PyTorchMoELayerCaptureInput],
    ) -> JsonObject:
        """Record the next token: as `record_token_complete`, with the index after the last one's.

        Returns:
            A copy of the event.
        """
        next_index = self._raw_events[-1]["token_index"] + 1 if self._raw_events else 0
        return self.record_token_complete(
            token_index=next_index,
            token_id=token_id,
            token_text=token_text,
            context_length=context_length,
            decode_start_ms=decode_start_ms,
            decode_end_ms=decode_end_ms,
            layer_inputs=layer_inputs,
        )

    def build_layout(self) -> JsonObject:
        """Return a grid layout of the layers seen so far, sorted by layer.

        Raises:
            InvalidDataError: no token was recorded yet.
        """
        if not self._raw_events:
            raise InvalidDataError("no token was recorded yet; the layout is made of their layers")
        return build_layer_grid_layout(
            run_id=self._manifest["run_id"],
            layout_id=self._layout_id,
            layer_expert_counts=sorted(self._expert_counts.items()),
        )

    def write_bundle(self, root_dir: str | os.PathLike[str]) -> Path:
        """Check and write the bundle; see `write_run_bundle` for what is raised.

        Raises:
            InvalidDataError: no token was recorded yet.
        """
        return write_run_bundle(root_dir, self._manifest, self._raw_events, self.build_layout())
