"""Tensor headers and plans for tests of extraction: no file is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_weights.checkpoint.dtype_codes import dtype_bits
from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.checkpoint.expert_expectation import (
    ExpectedStack,
    ModelExpectation,
    expect_experts,
)
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.field_types import as_tuples
from moe_weights.config.load import parse_config
from moe_weights.config.preset import Preset
from moe_weights.decode.resolve import resolve_encodings
from moe_weights.decode.stored_tensor import EncodingContext
from moe_weights.extract.copies import set_copies_apart
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


def make_expectation(dimensions: ExpertDimensions) -> ModelExpectation:
    """Return what a config.json with sizes and no layers says; nothing when all are unknown."""
    if dimensions == UNKNOWN_DIMENSIONS:
        return ModelExpectation()
    stack = ExpectedStack(
        stack="text",
        n_layers=None,
        moe_layers=None,
        n_experts=dimensions.n_experts,
        hidden_size=dimensions.hidden_size,
        expert_widths=dimensions.expert_widths,
    )
    return ModelExpectation(stacks=(stack,))


def make_preset(*rules: dict[str, Any], name: str = "p", **fields: Any) -> Preset:
    """Return a preset of these rules, in the order given."""
    document = {
        "name": name,
        "source": "a test",
        "model_types": ["t"],
        "rules": list(rules),
        "examples": [],
        **fields,
    }
    return Preset.model_validate(as_tuples(document))


def plan_headers(
    headers: Sequence[TensorHeader],
    changes: dict[str, Any] | None = None,
    dimensions: ExpertDimensions = UNKNOWN_DIMENSIONS,
    *,
    model_config: Mapping[str, Any] | None = None,
    preset: Preset | None = None,
    quantization: Mapping[str, object] | None = None,
) -> ExtractionPlan:
    """Plan with the template config, changed as `make_config_document` says.

    Args:
        headers: The stored tensors, those of copies included.
        changes: To the template config.
        dimensions: What config.json says about sizes, where `model_config` is not given.
        model_config: Content of config.json.
        preset: Rules for the architecture.
        quantization: The quantisation block of config.json.
    """
    expectation = (
        make_expectation(dimensions) if model_config is None else expect_experts(model_config)
    )
    kept, copies = set_copies_apart(headers)
    context = EncodingContext(
        by_name={header.name: header for header in kept},
        quantization=quantization or {},
        read_metadata=_read_nothing,
        hidden_sizes=expectation.hidden_sizes,
    )
    return plan_extraction(
        resolve_encodings(kept, context),
        parse_config(make_config_document(changes)),
        expectation,
        scanned=kept,
        preset=preset,
        copies=copies,
    )


def _read_nothing(header: TensorHeader) -> bytes:
    raise AssertionError(f"no content is needed, also not that of {header.name}")


def plan_one(
    name: str,
    shape: Sequence[int],
    changes: dict[str, Any] | None = None,
    dimensions: ExpertDimensions = UNKNOWN_DIMENSIONS,
    *,
    dtype_code: str = "BF16",
    preset: Preset | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> ExtractionPlan:
    """Plan a checkpoint of one tensor."""
    header = make_header(name, shape, dtype_code)
    return plan_headers([header], changes, dimensions, preset=preset, model_config=model_config)


def make_rule(match: str, *, rows: int = 0, cols: int = 1, **fields: Any) -> dict[str, Any]:
    """Return a rule of the name "r"; `expert`, `layer` and `stacked` are axes, the rest fields."""
    layout = {
        "layer_axis": fields.pop("layer", None),
        "expert_axis": fields.pop("expert", None),
        "rows_axis": rows,
        "cols_axis": cols,
    }
    stacked = fields.pop("stacked", None)
    if stacked is not None:
        layout["stacked_experts_axis"] = stacked
    return {"name": "r", "match": match, "layout": layout, **fields}


def rules(*rules: dict[str, Any]) -> dict[str, Any]:
    """Return the change of the template config that leaves these rules alone, named in order."""
    named = [
        rule if rule["name"] != "r" or len(rules) == 1 else rule | {"name": f"r{position}"}
        for position, rule in enumerate(rules)
    ]
    return {"extract_rules": named}


def keys_of(plan: ExtractionPlan) -> dict[str, list[Key]]:
    """Return (layer, expert, proj) of every planned matrix by source tensor."""
    found: dict[str, list[Key]] = {}
    for unit in plan.units:
        for matrix in unit.matrices:
            key = (matrix.layer, matrix.expert_id, matrix.proj)
            found.setdefault(unit.source.header.name, []).append(key)
    return found


def stacks_of(plan: ExtractionPlan) -> dict[str, set[str]]:
    """Return the stacks of the planned matrices by source tensor."""
    found: dict[str, set[str]] = {}
    for unit in plan.units:
        for matrix in unit.matrices:
            found.setdefault(unit.source.header.name, set()).add(matrix.stack)
    return found


def reasons_of(plan: ExtractionPlan) -> dict[str, str]:
    """Return why each unmatched tensor is not measured."""
    return {tensor.header.name: str(tensor.reason) for tensor in plan.unmatched}


def fates_of(plan: ExtractionPlan) -> dict[str, tuple[str, str]]:
    """Return fate and detail of every tensor in the ledger."""
    return {item.tensor: (str(item.fate), item.detail) for item in plan.accounts}


def lookalikes_of(plan: ExtractionPlan) -> dict[str, str]:
    """Return the kind of every look-alike in the ledger."""
    return {
        tensor: detail for tensor, (fate, detail) in fates_of(plan).items() if fate == "lookalike"
    }


def messages_of(plan: ExtractionPlan) -> list[str]:
    """Return the texts of the findings."""
    return [finding.message for finding in plan.findings]
