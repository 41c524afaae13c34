"""What can a backend honestly produce?

A declaration bounds a trace: what a backend calls unsupported must not appear in what it emits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.vocabulary import (
    DeviceKind,
    SupportLevel,
    TraceArtifactKind,
    parse_word,
)

_FEATURE_OF_KIND = {
    TraceArtifactKind.LOGITS: "logits",
    TraceArtifactKind.LOGPROBS: "logprobs",
    TraceArtifactKind.ACTIVATION: "activations",
    TraceArtifactKind.INTERVENTION_RESULT: "interventions",
    TraceArtifactKind.WEIGHT_SNAPSHOT: "weight_access",
}
# Emitted by the executor around the model, so by every backend that has one.
_KINDS_OF_ADAPTERS = {TraceArtifactKind.TOKENS, TraceArtifactKind.PROFILE}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeCapability:
    """What one backend declares.

    Attributes:
        name: mlx, torch, max or numpy.
        device_kinds: Where it runs, at least one.
        has_adapter: Whether this package can execute models with it.
        logits: Output of the last layer over the vocabulary.
        logprobs: Its log-softmax.
        activations: Outputs of decoder layers.
        interventions: Changes of a layer's output during a run.
        kv_cache: Keys and values between prefill and decode.
        weight_access: Reading weights of the loaded model.
        mutable_weights: Changing them in place.

    Raises:
        InvalidDataError: the name, a device kind or a level is unknown, or no device is named.
    """

    name: str
    device_kinds: tuple[DeviceKind, ...]
    has_adapter: bool = True
    logits: SupportLevel = SupportLevel.UNSUPPORTED
    logprobs: SupportLevel = SupportLevel.UNSUPPORTED
    activations: SupportLevel = SupportLevel.UNSUPPORTED
    interventions: SupportLevel = SupportLevel.UNSUPPORTED
    kv_cache: SupportLevel = SupportLevel.UNSUPPORTED
    weight_access: SupportLevel = SupportLevel.UNSUPPORTED
    mutable_weights: SupportLevel = SupportLevel.UNSUPPORTED

    def __post_init__(self) -> None:
        if self.name not in BACKEND_NAMES:
            known = ", ".join(BACKEND_NAMES)
            raise InvalidDataError(f"backend: {self.name!r} is unknown; use one of {known}")
        kinds = tuple(parse_word(DeviceKind, kind, "device_kinds") for kind in self.device_kinds)
        if not kinds:
            raise InvalidDataError("device_kinds: name at least one device kind")
        object.__setattr__(self, "device_kinds", kinds)
        for name in FEATURES:
            object.__setattr__(self, name, parse_word(SupportLevel, getattr(self, name), name))

    def support_level(self, feature: str) -> SupportLevel:
        """Return the level of one feature, for example `activations`.

        Raises:
            InvalidDataError: there is no such feature.
        """
        if feature not in FEATURES:
            raise InvalidDataError(
                f"feature: {feature!r} is unknown; use one of {', '.join(FEATURES)}"
            )
        level: SupportLevel = getattr(self, feature)
        return level

    def support_level_for_artifact(self, kind: TraceArtifactKind | str) -> SupportLevel:
        """Return how far the backend can emit a kind of artifact.

        `text` and `metric` are unsupported everywhere: no executor of this package emits them.

        Raises:
            InvalidDataError: there is no such kind.
        """
        known = parse_word(TraceArtifactKind, kind, "kind")
        if known in _KINDS_OF_ADAPTERS:
            return SupportLevel.FULL if self.has_adapter else SupportLevel.UNSUPPORTED
        feature = _FEATURE_OF_KIND.get(known)
        return SupportLevel.UNSUPPORTED if feature is None else self.support_level(feature)

    @property
    def can_emit_text(self) -> bool:
        """Whether generated text can be an artifact."""
        return self.support_level_for_artifact(TraceArtifactKind.TEXT).supports

    @property
    def can_emit_tokens(self) -> bool:
        """Whether token ids can be an artifact."""
        return self.support_level_for_artifact(TraceArtifactKind.TOKENS).supports

    @property
    def can_emit_logits(self) -> bool:
        """Whether logits can be an artifact."""
        return self.logits.supports

    @property
    def can_emit_logprobs(self) -> bool:
        """Whether log-probabilities can be an artifact."""
        return self.logprobs.supports

    @property
    def can_emit_activations(self) -> bool:
        """Whether outputs of layers can be artifacts."""
        return self.activations.supports

    @property
    def can_apply_interventions(self) -> bool:
        """Whether a layer's output can be changed during a run."""
        return self.interventions.supports

    @property
    def can_inspect_weights(self) -> bool:
        """Whether weights can be read."""
        return self.weight_access.supports

    @property
    def can_mutate_weights(self) -> bool:
        """Whether weights can be changed in place."""
        return self.mutable_weights.supports

    @property
    def can_profile_device_memory(self) -> bool:
        """Whether peak memory can be measured: only accelerators count theirs."""
        return self.has_adapter and self.device_kinds != (DeviceKind.CPU,)

    @property
    def can_profile_sync_points(self) -> bool:
        """Whether waits for the device can be counted."""
        return self.can_profile_device_memory

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form, with `artifact_support` for every kind."""
        return {
            "name": self.name,
            "device_kinds": [str(kind) for kind in self.device_kinds],
            **{name: str(self.support_level(name)) for name in FEATURES},
            "artifact_support": {
                str(kind): str(self.support_level_for_artifact(kind)) for kind in TraceArtifactKind
            },
        }


BACKEND_NAMES = ("mlx", "torch", "max", "numpy")
FEATURES = tuple(
    member.name
    for member in fields(RuntimeCapability)
    if member.name not in {"name", "device_kinds", "has_adapter"}
)


def _declare(
    name: str, *device_kinds: DeviceKind, level: SupportLevel, has_adapter: bool = True
) -> RuntimeCapability:
    return RuntimeCapability(
        name=name,
        device_kinds=device_kinds,
        has_adapter=has_adapter,
        logits=level,
        logprobs=level,
        activations=level,
        interventions=level,
        kv_cache=level,
        weight_access=level,
        mutable_weights=level,
    )


# MAX has no executor here, so it can show nothing.
DECLARED_CAPABILITIES = {
    declared.name: declared
    for declared in (
        _declare("mlx", DeviceKind.GPU, DeviceKind.CPU, level=SupportLevel.FULL),
        _declare("torch", DeviceKind.CPU, DeviceKind.CUDA, DeviceKind.MPS, level=SupportLevel.FULL),
        _declare("max", DeviceKind.CPU, level=SupportLevel.UNSUPPORTED, has_adapter=False),
        _declare("numpy", DeviceKind.CPU, level=SupportLevel.FULL),
    )
}


def declared_capability(name: str) -> RuntimeCapability:
    """Return what a backend declares.

    Raises:
        InvalidDataError: the backend is unknown.
    """
    if name not in DECLARED_CAPABILITIES:
        known = ", ".join(BACKEND_NAMES)
        raise InvalidDataError(f"backend: {name!r} is unknown; use one of {known}")
    return DECLARED_CAPABILITIES[name]
