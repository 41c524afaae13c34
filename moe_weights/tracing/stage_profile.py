"""What did one stage cost?

Durations and counts are always recorded, memory only when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_weights.atomic_files import JsonValue
from moe_weights.tracing.field_checks import (
    require_count,
    require_duration,
    require_metadata,
    require_text,
)
from moe_weights.tracing.vocabulary import DeviceRef

_OPTIONAL_COUNTS = (
    "memory_bytes",
    "batch_size",
    "token_count",
    "input_bytes",
    "output_bytes",
    "queue_depth",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProfile:
    """Time, sizes and synchronisation of one stage.

    Attributes:
        name: Name of the stage.
        duration_s: Wall time, seconds.
        device: Where it ran; None when unknown.
        memory_bytes: Peak memory of the accelerator, bytes; None when not measured.
        metadata: Notes of the backend, JSON values.
        batch_size: Sequences at once.
        token_count: Tokens that the stage worked on.
        input_bytes: Bytes that it read.
        output_bytes: Bytes that it made.
        host_device_copies: Copies between host and device.
        sync_points: How often the host waited for the device.
        queue_depth: Requests waiting.

    Raises:
        InvalidDataError: the name is blank, or a number is negative or not finite.
    """

    name: str
    duration_s: float
    device: DeviceRef | None = None
    memory_bytes: int | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    batch_size: int | None = None
    token_count: int | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    host_device_copies: int = 0
    sync_points: int = 0
    queue_depth: int | None = None

    def __post_init__(self) -> None:
        require_text(self.name, "profile.name")
        require_duration(self.duration_s, "profile.duration_s")
        for name in _OPTIONAL_COUNTS:
            value = getattr(self, name)
            if value is not None:
                require_count(value, f"profile.{name}")
        require_count(self.host_device_copies, "profile.host_device_copies")
        require_count(self.sync_points, "profile.sync_points")
        require_metadata(self.metadata, "profile.metadata")

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form; what was not measured is left out."""
        document: dict[str, JsonValue] = {
            "name": self.name,
            "duration_s": self.duration_s,
            "host_device_copies": self.host_device_copies,
            "sync_points": self.sync_points,
            "metadata": dict(self.metadata),
        }
        if self.device is not None:
            document["device"] = self.device.to_dict()
        for name in _OPTIONAL_COUNTS:
            value = getattr(self, name)
            if value is not None:
                document[name] = value
        return document
