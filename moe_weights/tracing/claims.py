"""How much may be claimed from what a run actually showed?

A missing artifact narrows the claim. What a backend declares bounds a trace, but only what the
trace holds counts as evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moe_weights.errors import InvalidDataError
from moe_weights.tracing.capability import RuntimeCapability
from moe_weights.tracing.trace import Trace
from moe_weights.tracing.vocabulary import TraceArtifactKind, parse_word


class AccessLevel(StrEnum):
    """What somebody could look at."""

    SINGLE_SNAPSHOT = "single_snapshot"
    BLACK_BOX = "black_box"
    PAIRED_OUTPUTS = "paired_outputs"
    LOGPROBS = "logprobs"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    BASE_AND_MODIFIED = "base_and_modified"
    BASE_AND_TRANSFORMED = "base_and_transformed"


class ClaimStrength(StrEnum):
    """Kinds of claims, weakest first."""

    BEHAVIORAL_PROFILE = "behavioral_profile"
    BLACK_BOX_BEHAVIORAL_DIFF = "black_box_behavioral_diff"
    DISTRIBUTIONAL_DIFF = "distributional_diff"
    WEIGHT_DIFF = "weight_diff"
    ACTIVATION_DIAGNOSTIC = "activation_diagnostic"
    MODEL_CHANGE_AUDIT = "model_change_audit"


ACCESS_RANKS: dict[AccessLevel, int] = {
    AccessLevel.SINGLE_SNAPSHOT: 0,
    AccessLevel.BLACK_BOX: 1,
    AccessLevel.PAIRED_OUTPUTS: 1,
    AccessLevel.LOGPROBS: 2,
    AccessLevel.WEIGHTS: 3,
    AccessLevel.ACTIVATIONS: 4,
    AccessLevel.BASE_AND_MODIFIED: 5,
    AccessLevel.BASE_AND_TRANSFORMED: 5,
}
CLAIM_RANKS: dict[ClaimStrength, int] = {
    strength: rank for rank, strength in enumerate(ClaimStrength)
}

_CAN: dict[int, tuple[str, ...]] = {
    0: ("describe the outputs of one model on the prompts that were run",),
    1: ("say whether outputs differ on the prompts that were run",),
    2: ("say how far next-token distributions differ on the tokens that were run",),
    3: ("say which weights differ and by how much",),
    4: ("say at which stage, step and layer hidden states first differ",),
    5: ("attribute a difference to a known change, as far as it was undone and measured again",),
}
_CANNOT: dict[int, str] = {
    1: "say that two models differ or agree",
    2: "say how probable other outputs were",
    3: "say anything about weights",
    4: "say where inside the model a difference begins",
    5: "say what caused a difference; that needs an intervention",
}
_ALWAYS_CANNOT = "say anything about prompts, lengths or settings that were not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPolicy:
    """A claim together with the access it rests on.

    Attributes:
        access_level: What could be looked at.
        claim_strength: What is claimed.

    Raises:
        InvalidDataError: the claim is stronger than the access allows.
    """

    access_level: AccessLevel
    claim_strength: ClaimStrength

    def __post_init__(self) -> None:
        level = parse_word(AccessLevel, self.access_level, "access_level")
        strength = parse_word(ClaimStrength, self.claim_strength, "claim_strength")
        object.__setattr__(self, "access_level", level)
        object.__setattr__(self, "claim_strength", strength)
        strongest = strongest_claim(level)
        if CLAIM_RANKS[strength] > CLAIM_RANKS[strongest]:
            raise InvalidDataError(
                f'claim_strength: "{strength}" is stronger than access level "{level}" allows; '
                f'claim at most "{strongest}" or collect the evidence'
            )


def strongest_claim(level: AccessLevel | str) -> ClaimStrength:
    """Return the strongest claim that an access level allows.

    Raises:
        InvalidDataError: the level is unknown.
    """
    rank = ACCESS_RANKS[parse_word(AccessLevel, level, "access_level")]
    return list(ClaimStrength)[rank]


def can_claim(level: AccessLevel | str) -> tuple[str, ...]:
    """Return what an access level lets a report say, weakest first.

    Raises:
        InvalidDataError: the level is unknown.
    """
    rank = ACCESS_RANKS[parse_word(AccessLevel, level, "access_level")]
    # Looking at weights shows no outputs: that level does not include the weaker behavioural ones.
    ranks = (3,) if rank == 3 else tuple(number for number in range(rank + 1) if number != 3)
    return tuple(text for number in ranks for text in _CAN[number])


def cannot_claim(level: AccessLevel | str) -> tuple[str, ...]:
    """Return what an access level does not let a report say.

    Raises:
        InvalidDataError: the level is unknown.
    """
    rank = ACCESS_RANKS[parse_word(AccessLevel, level, "access_level")]
    refused = tuple(text for number, text in _CANNOT.items() if number > rank)
    if rank == 4:
        refused = (_CANNOT[3], *refused)  # activations show no weights
    return (*refused, _ALWAYS_CANNOT)


def access_level_of_trace(trace: Trace) -> AccessLevel:
    """Return the access level that a trace's own artifacts prove."""
    kinds = set(trace.artifact_kinds)
    if TraceArtifactKind.ACTIVATION in kinds:
        return AccessLevel.ACTIVATIONS
    if TraceArtifactKind.WEIGHT_SNAPSHOT in kinds:
        return AccessLevel.WEIGHTS
    if kinds & {TraceArtifactKind.LOGITS, TraceArtifactKind.LOGPROBS}:
        return AccessLevel.LOGPROBS
    return AccessLevel.BLACK_BOX


def access_level_of_capability(capability: RuntimeCapability) -> AccessLevel:
    """Return the access level that a backend declares it could reach."""
    if capability.can_emit_activations:
        return AccessLevel.ACTIVATIONS
    if capability.can_inspect_weights:
        return AccessLevel.WEIGHTS
    if capability.can_emit_logits or capability.can_emit_logprobs:
        return AccessLevel.LOGPROBS
    return AccessLevel.BLACK_BOX
