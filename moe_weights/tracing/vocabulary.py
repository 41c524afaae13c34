"""Which words does a trace use: kinds of artifacts, support levels, devices, stages?

`STAGES` maps the span names of a trace to the hook points of a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from moe_weights.errors import InvalidDataError
from moe_weights.tracing.field_checks import require_text

_Word = TypeVar("_Word", bound=StrEnum)


class TraceArtifactKind(StrEnum):
    """What a span produced or consumed; the order is part of the format."""

    TEXT = "text"
    TOKENS = "tokens"
    LOGITS = "logits"
    LOGPROBS = "logprobs"
    ACTIVATION = "activation"
    INTERVENTION_RESULT = "intervention_result"
    WEIGHT_SNAPSHOT = "weight_snapshot"
    METRIC = "metric"
    REPORT_EVIDENCE = "report_evidence"
    PROFILE = "profile"
    OTHER = "other"


class SupportLevel(StrEnum):
    """How far a backend can do something."""

    UNSUPPORTED = "unsupported"
    PARTIAL = "partial"
    FULL = "full"

    @property
    def supports(self) -> bool:
        """Whether it can be done at all."""
        return self is not SupportLevel.UNSUPPORTED


class DeviceKind(StrEnum):
    """Where a stage ran; `gpu` is what MLX calls its accelerator."""

    CPU = "cpu"
    GPU = "gpu"
    CUDA = "cuda"
    MPS = "mps"


class HookPoint(StrEnum):
    """Where two runs are compared, in pipeline order.

    `kv_transfer` is the hand-over of the cache between prefill and decode, not a copy between host
    and device.
    """

    PREFILL = "prefill"
    KV_TRANSFER = "kv_transfer"
    DECODE_STEP = "decode_step"


# Span names that mean the stage of a hook point. `prepare_batch` copies between host and device and
# is deliberately none.
STAGES: dict[str, HookPoint] = {
    "prefill": HookPoint.PREFILL,
    "forward": HookPoint.PREFILL,
    "decode": HookPoint.DECODE_STEP,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRef:
    """A device that ran something.

    Attributes:
        kind: cpu, gpu, cuda or mps.
        label: What the framework calls it, for example `cuda:0`.

    Raises:
        InvalidDataError: the kind is unknown or the label is blank.
    """

    kind: DeviceKind
    label: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", parse_word(DeviceKind, self.kind, "device.kind"))
        require_text(self.label, "device.label")

    @property
    def is_accelerator(self) -> bool:
        """Whether its work is queued, so that clocks need a synchronisation."""
        return self.kind is not DeviceKind.CPU

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"kind": str(self.kind), "label": self.label}


def parse_word(words: type[_Word], value: object, field: str) -> _Word:
    """Return the member of an enumeration that `value` names.

    Raises:
        InvalidDataError: it names none; the message lists those that there are.
    """
    for word in words:
        if word == value:
            return word
    raise InvalidDataError(f"{field}: {value!r} is unknown; use one of {', '.join(words)}")
