"""From stored tensors to tensors as they are meant: codes and companions joined by name.

1. Every member may claim a tensor as its codes, the most particular first.
2. Companions of a claimed tensor are explained by it and stand for nothing else.
3. What remains is plain floats, or is left to the inventory.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.name_ids import templates_of
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.claimants import Claimants
from moe_weights.decode.encoding import Encoding, Parts
from moe_weights.decode.members import MEMBERS
from moe_weights.decode.row_cuts import RowCuts
from moe_weights.decode.stored_tensor import (
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    Resolution,
    StoredTensor,
)

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


def resolve_encodings(headers: Sequence[TensorHeader], context: EncodingContext) -> Resolution:
    """Join codes and companions of a whole checkpoint.

    Args:
        headers: The stored tensors that count, in scan order.
        context: The same by name, and the quantisation config.
    """
    files = _files_of_repeated(headers)
    contexts = _contexts_of_repeated(headers, context, files)
    templates = templates_of([header.name for header in headers])
    claimants = Claimants(MEMBERS, frozenset(templates), context)
    tensors: list[StoredTensor] = []
    refusals: list[EncodingRefusal] = []
    others: list[TensorHeader] = []
    companions: dict[str, str] = {}
    for header, template in zip(headers, templates, strict=True):
        _file, name, code, shape, _offset, _nbytes, _member, _order = header
        if name in companions:
            continue
        claim = None
        if name in files:
            claim = _claim(header, contexts[header.file, name], MEMBERS)
        elif members := claimants.of(template, header):
            claim = _claim(header, context, members)
        if claim is None:
            if code in _PLAIN:
                fields = (name, "plain", header, shape, (), ())
                tensors.append(tuple.__new__(StoredTensor, fields))
            else:
                others.append(header)
            continue
        if isinstance(claim, StoredTensor):
            claim = _refuse_repeated_companion(claim, files) or claim
        if isinstance(claim, StoredTensor):
            tensors.append(claim)
            companions.update((part.name, name) for _role, part in claim.companions)
        else:
            refusals.append(claim)
            companions.update((part.name, name) for part in claim.companions)
    if companions:  # some stand before the tensor that they belong to
        tensors = [tensor for tensor in tensors if tensor.header.name not in companions]
        refusals = [refusal for refusal in refusals if refusal.header.name not in companions]
        others = [header for header in others if header.name not in companions]
    return Resolution(
        tensors=tuple(tensors),
        refusals=tuple(refusals),
        companions=companions,
        others=tuple(others),
        templates=templates,
    )


def _files_of_repeated(headers: Sequence[TensorHeader]) -> dict[str, list[str]]:
    """Return the files of each name that lies in several, in scan order."""
    files: dict[str, list[str]] = {}
    if len({header.name for header in headers}) < len(headers):
        counts = Counter(header.name for header in headers)
        for header in headers:
            if counts[header.name] > 1:
                files.setdefault(header.name, []).append(header.file)
    return files


def _contexts_of_repeated(
    headers: Sequence[TensorHeader], context: EncodingContext, files: Mapping[str, list[str]]
) -> dict[tuple[str, str], EncodingContext]:
    """Return what tensors see whose name lies in several files: their own file's parts first."""
    of_file: dict[str, dict[str, TensorHeader]] = {}
    for header in headers:
        if header.name in files:
            of_file.setdefault(header.file, {})[header.name] = header
    everything = dict(context.by_name) if files else {}
    contexts: dict[tuple[str, str], EncodingContext] = {}
    for file, own in of_file.items():
        of_this = replace(context, by_name=ChainMap(own, everything))
        contexts.update(((file, name), of_this) for name in own)
    return contexts


def _refuse_repeated_companion(
    tensor: StoredTensor, files: Mapping[str, list[str]]
) -> EncodingRefusal | None:
    """Refuse a tensor with two copies of a companion, unless each copy has its own tensor."""
    header = tensor.header
    for _role, companion in tensor.companions:
        has_own = header.name in files and companion.file == header.file
        if companion.name in files and not has_own:
            return EncodingRefusal(
                name=tensor.name,
                header=header,
                kind=RefusalKind.BAD_COMPANION,
                cause=f"{header.name} has several {companion.name}, in "
                f"{' and '.join(files[companion.name])}; keep the one that belongs to it",
                companions=tuple(part for _role, part in tensor.companions),
            )
    return None


def decode_parts(tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
    """Decode stored parts with the member that claimed the tensor; see `Encoding.decode`."""
    return _BY_NAME[tensor.encoding].decode(tensor, parts)


def codes_of_parts(tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
    """Return the stored codes that the parts hold; see `Encoding.codes`."""
    return _BY_NAME[tensor.encoding].codes(tensor, parts)


def row_cuts_of(tensor: StoredTensor) -> RowCuts | None:
    """Return how the parts of an encoded tensor are cut with its rows; see `Encoding.row_cuts`."""
    return _BY_NAME[tensor.encoding].row_cuts(tensor)


def _claim(
    header: TensorHeader, context: EncodingContext, members: Sequence[Encoding]
) -> StoredTensor | EncodingRefusal | None:
    for member in members:
        claim = member.claim(header, context)
        if claim is not None:
            return claim
    return None


_BY_NAME: dict[str, Encoding] = {member.name: member for member in MEMBERS}
