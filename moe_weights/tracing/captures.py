"""What was seen at one point of a run: the arrays of one stage, layer and step?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moe_weights.atomic_files import JsonValue
from moe_weights.tracing.array_summary import summarise_array
from moe_weights.tracing.field_checks import require_count, require_metadata
from moe_weights.tracing.vocabulary import HookPoint, parse_word

# The order decides which field of a layer is named as the first that diverges.
CAPTURE_FIELDS = ("hidden_states", "attention_weights", "logits", "kv_cache")

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class HookCapture:
    """Arrays of one stage, layer and step; any may be missing.

    Attributes:
        hook_point: Stage.
        layer: Decoder layer whose output this is.
        step: Decode step, 0 = the first generated token; None outside `decode_step`.
        hidden_states: Output of the layer (tokens, hidden).
        attention_weights: (heads, queries, keys).
        logits: (tokens, vocabulary); of a real model only on its last layer.
        kv_cache: Keys and values, (2, heads, positions, head_dim), or joined along the last axis
            when their widths differ.
        metadata: Notes, JSON values.

    Raises:
        InvalidDataError: the hook point is unknown, a number is negative, metadata is no JSON.
    """

    hook_point: HookPoint
    layer: int
    step: int | None = None
    hidden_states: Array | None = None
    attention_weights: Array | None = None
    logits: Array | None = None
    kv_cache: Array | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "hook_point", parse_word(HookPoint, self.hook_point, "capture.hook_point")
        )
        require_count(self.layer, "capture.layer")
        if self.step is not None:
            require_count(self.step, "capture.step")
        require_metadata(self.metadata, "capture.metadata")

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays that are there, by field, in the order of `CAPTURE_FIELDS`."""
        present = ((name, getattr(self, name)) for name in CAPTURE_FIELDS)
        return {name: np.asarray(array) for name, array in present if array is not None}

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form: each array by shape, dtype and summary, or null."""
        arrays = self.arrays
        return {
            "hook_point": str(self.hook_point),
            "layer": self.layer,
            "step": self.step,
            **{
                name: (
                    {
                        "shape": list(arrays[name].shape),
                        "dtype": str(arrays[name].dtype),
                        "summary": summarise_array(arrays[name]).to_dict(),
                    }
                    if name in arrays
                    else None
                )
                for name in CAPTURE_FIELDS
            },
            "metadata": dict(self.metadata),
        }
