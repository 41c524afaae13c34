"""Tensor headers and plans for tests of extraction: no file is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_weights.checkpoint.dtype_codes import dtype_bits
from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.load import parse_config
from moe_weights.extract.plan import ExtractionPlan, plan_extraction
from tests.support.config_documents import make_config_document

SHARD = "model.safetensors"
UNKNOWN_DIMENSIONS = ExpertDimensions(hidden_size=None, expert_widths=(), n_experts=None)

# (layer, expert, proj) of a matrix
Key = tuple[int, int, str]


def make_header(
    name: str,
    shape: Sequence[int],
    dtype_code: str = "BF16",
    *,
    file: str = SHARD,
    offset: int = 0,
    fortran_order: bool = False,
) -> TensorHeader:
    """Return the header of a tensor; a code without a known size counts two bytes an element."""
    bits = dtype_bits(dtype_code) or 16
    return TensorHeader(
        file=file,
        name=name,
        dtype_code=dtype_code,
        shape=tuple(shape),
        offset=offset,
        nbytes=math.prod(shape) * bits // 8,
        fortran_order=fortran_order,
    )


def make_headers(
    tensors: Mapping[str, Sequence[int]], dtype_code: str = "BF16", *, n_shards: int = 1
) -> list[TensorHeader]:
    """Return headers of tensors that lie one after another, dealt out to shards in turn."""
    ends = [0] * n_shards
    headers = []
    for position, (name, shape) in enumerate(tensors.items()):
        shard = position % n_shards
        header = make_header(
            name, shape, dtype_code, file=f"model-{shard}.safetensors", offset=ends[shard]
        )
        ends[shard] += header.nbytes
        headers.append(header)
    return headers


def plan_headers(
    headers: Sequence[TensorHeader],
    changes: dict[str, Any] | None = None,
    dimensions: ExpertDimensions = UNKNOWN_DIMENSIONS,
) -> ExtractionPlan:
    """Plan with the template config, changed as `make_config_document` says."""
    return plan_extraction(headers, parse_config(make_config_document(changes)), dimensions)


def plan_one(
    name: str,
    shape: Sequence[int],
    changes: dict[str, Any] | None = None,
    dimensions: ExpertDimensions = UNKNOWN_DIMENSIONS,
    *,
    dtype_code: str = "BF16",
) -> ExtractionPlan:
    """Plan a checkpoint of one tensor."""
    return plan_headers([make_header(name, shape, dtype_code)], changes, dimensions)


def make_rule(match: str, *, rows: int = 0, cols: int = 1, **fields: Any) -> dict[str, Any]:
    """Return a rule of the name "r"; `expert` and `layer` are axes, the rest are rule fields."""
    layout = {
        "layer_axis": fields.pop("layer", None),
        "expert_axis": fields.pop("expert", None),
        "rows_axis": rows,
        "cols_axis": cols,
    }
    return {"name": "r", "match": match, "layout": layout, **fields}


def keys_of(plan: ExtractionPlan) -> dict[str, list[Key]]:
    """Return (layer, expert, proj) of every planned matrix by source tensor."""
    found: dict[str, list[Key]] = {}
    for unit in plan.units:
        for matrix in unit.matrices:
            key = (matrix.layer, matrix.expert_id, matrix.proj)
            found.setdefault(unit.source.name, []).append(key)
    return found


def reasons_of(plan: ExtractionPlan) -> dict[str, str]:
    """Return why each unmatched tensor is not measured."""
    return {tensor.header.name: str(tensor.reason) for tensor in plan.unmatched}


def messages_of(plan: ExtractionPlan) -> list[str]:
    """Return the texts of the findings."""
    return [finding.message for finding in plan.findings]
