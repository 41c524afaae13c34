"""What does the reference say about architectures, encodings and the coverage ledger?"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from markdown_tables import code, escape, first_paragraph, table
from reference_texts import (
    FATE_MEANINGS,
    LOOKALIKE_MEANINGS,
    ROLE_MEANINGS,
    STATUS_MEANINGS,
    UNMATCHED_MEANINGS,
)

from moe_weights.config.preset import load_presets
from moe_weights.decode.members import MEMBERS
from moe_weights.decode.mlx_packed import MLX_MEMBERS
from moe_weights.extract.account import Fate
from moe_weights.extract.coverage import CoverageStatus
from moe_weights.extract.outcome import UnmatchedReason
from moe_weights.extract.tensor_roles import TensorRole


def reasons() -> Iterator[str]:
    """Why a tensor was not measured."""
    rows = [(code(reason), escape(UNMATCHED_MEANINGS[reason])) for reason in UnmatchedReason]
    return table(("reason", "meaning"), rows)


def presets() -> Iterator[str]:
    """The known architectures."""
    rows = [
        (
            code(preset.name),
            ", ".join(map(code, preset.model_types)),
            str(len(preset.rules)),
            escape(preset.source),
        )
        for preset in load_presets()
    ]
    return table(("preset", "`model_type`", "rules", "known from"), rows)


def encodings() -> Iterator[str]:
    """The forms of weights that are decoded."""
    rows = [("`plain`", "F64, F32, F16 and BF16, as they are.")]
    for member in MEMBERS:
        text = first_paragraph(sys.modules[type(member).__module__])
        if member in MLX_MEMBERS:
            text += f" Mode {member.name.removeprefix('mlx_')}."
        rows.append((code(member.name), escape(text)))
    return table(("encoding", "what lies on disk, and what it means"), rows)


def coverage_statuses() -> Iterator[str]:
    """The verdicts of the ledger."""
    rows = [(code(status), escape(STATUS_MEANINGS[status])) for status in CoverageStatus]
    return table(("status", "meaning"), rows)


def fates() -> Iterator[str]:
    """What becomes of a tensor."""
    return table(("fate", "meaning"), [(code(fate), escape(FATE_MEANINGS[fate])) for fate in Fate])


def lookalikes() -> Iterator[str]:
    """What is no expert although it looks like one."""
    by_presets = {lookalike.kind for preset in load_presets() for lookalike in preset.lookalikes}
    kinds = [*LOOKALIKE_MEANINGS, *sorted(by_presets - set(LOOKALIKE_MEANINGS))]
    rows = [(code(kind), escape(LOOKALIKE_MEANINGS[kind])) for kind in kinds]
    return table(("kind", "what the tensor is"), rows)


def roles() -> Iterator[str]:
    """What tensors are for."""
    rows = [(code(role), escape(ROLE_MEANINGS[role])) for role in TensorRole]
    return table(("role", "meaning"), rows)
