"""What did SGLang's expert distribution recorder dump: tokens, or counts alone?

- per_token: `records` of forward passes with `topk_ids_of_layer` [layers, tokens, places], -1 where
  empty, of physical experts; `last_physical_to_logical_map` [layers, physical] names the logical.
- per_pass: `records` with `global_physical_count` [layers, physical].
- stat, stat_approx: `logical_count` [steps, layers, experts].

Counts are statistics, and never become events: nobody recorded which token chose what.

Source: python/sglang/srt/eplb/expert_distribution.py of sgl-project/sglang.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing.importers.recorded import Array, RecordedToken, to_ids, to_int64

# ForwardMode of sglang/srt/model_executor/forward_batch_info.py
_EXTEND, _DECODE, _IDLE = 1, 2, 4
_TOKENS, _PHYSICAL, _LOGICAL = "topk_ids_of_layer", "global_physical_count", "logical_count"
_MAP = "last_physical_to_logical_map"


def is_per_token(dump: Any) -> bool:
    """Whether a dump says which token chose what.

    Raises:
        InvalidDataError: it is no dump of the recorder.
    """
    if isinstance(dump, Mapping):
        if _LOGICAL in dump:
            return False
        records = dump.get("records")
        if isinstance(records, list) and records and isinstance(records[0], Mapping):
            return _TOKENS in records[0]
    raise InvalidDataError(
        "this is no dump of SGLang's expert distribution recorder: neither logical_count nor "
        "records are in it"
    )


def read_sglang_counts(dump: Mapping[str, Any]) -> Array:
    """Return (layers, logical experts) selections, int64, summed over all steps or passes.

    Raises:
        InvalidDataError: arrays of other shapes, or counts below 0.
    """
    if _LOGICAL in dump:
        counts = _integers(dump[_LOGICAL], _LOGICAL)
        _check_sum(counts, _LOGICAL)
        counts = counts.sum(axis=0) if counts.ndim == 3 else counts
    else:
        passes = [
            _integers(_field(record, _PHYSICAL, number), _PHYSICAL)
            for number, record in enumerate(dump["records"])
        ]
        if any(entry.shape != passes[0].shape for entry in passes):
            raise InvalidDataError(f"records: {_PHYSICAL} changes its shape")
        for entry in passes:
            _check_sum(entry, _PHYSICAL, len(passes))
        counts = np.sum(passes, axis=0)
        if dump.get(_MAP) is not None and counts.ndim == 2:
            counts = _to_logical_counts(counts, _integers(dump[_MAP], _MAP))
    if counts.ndim != 2 or 0 in counts.shape:
        raise InvalidDataError(
            f"counts must be of shape [layers, experts]; got {list(counts.shape)}"
        )
    return counts


def read_sglang_tokens(
    dump: Mapping[str, Any], *, request: int | None = None
) -> tuple[int, Iterator[RecordedToken]]:
    """Return (layers of the arrays, the tokens of one text in order).

    Args:
        dump: A per_token dump of one rank.
        request: Which of the texts that follow one another, from 0.

    Raises:
        UsageError: several texts and no `request`, or passes that mix texts.
        InvalidDataError: arrays that contradict one another.
    """
    records = [
        record
        for record in sorted(dump["records"], key=_pass_id)
        if record.get("forward_mode") != _IDLE
    ]
    ranks = sorted({str(record.get("rank")) for record in records})
    if len(ranks) > 1:
        raise UsageError(f"the dump mixes ranks {ranks}; import one rank's")
    mapping = None if dump.get(_MAP) is None else _integers(dump[_MAP], _MAP)
    tokens = [
        entry for number, record in enumerate(records) for entry in _pass(record, number, mapping)
    ]
    starts = [place for place, (position, _token) in enumerate(tokens) if position == 0]
    if not starts or starts[0] != 0:
        raise UsageError("the record does not start at position 0; record from an empty cache")
    if request is None and len(starts) != 1:
        raise UsageError(
            f"the record has {len(starts)} texts, a bundle holds one; choose one with --request"
        )
    chosen = request or 0
    if not 0 <= chosen < len(starts):
        raise UsageError(f"the record has {len(starts)} texts, there is no number {chosen}")
    ends = [*starts[1:], len(tokens)]
    text = tokens[starts[chosen] : ends[chosen]]
    if [position for position, _token in text] != list(range(len(text))):
        raise UsageError(
            "the positions of the record do not follow one another: its passes mix several texts; "
            "record one request at a time"
        )
    n_layers = {token.chosen.shape[0] for _position, token in text}
    if len(n_layers) > 1:
        raise InvalidDataError(
            f"the passes of the record have {' and '.join(map(str, sorted(n_layers)))} layers; "
            "those of one model have equally many"
        )
    return n_layers.pop(), (token for _position, token in text)


def _pass(
    record: Mapping[str, Any], number: int, mapping: Array | None
) -> Iterator[tuple[int, RecordedToken]]:
    mode = record.get("forward_mode")
    if mode not in (_EXTEND, _DECODE):  # JSON may hold what no set takes
        raise UsageError(
            f"records[{number}].forward_mode is {mode!r}; known are 1 (prefill) and 2 (decode)"
        )
    ids = to_ids(_field(record, "input_ids", number), f"records[{number}].input_ids")
    positions = to_ids(_field(record, "positions", number), f"records[{number}].positions")
    chosen = _integers(_field(record, _TOKENS, number), f"records[{number}].{_TOKENS}")
    if chosen.ndim != 3 or chosen.shape[1] != len(ids) or len(positions) != len(ids):
        raise InvalidDataError(
            f"records[{number}]: {len(ids)} input_ids, {len(positions)} positions and "
            f"{_TOKENS} of shape {list(chosen.shape)} do not fit; expected [layers, tokens, places]"
        )
    for place, (token_id, position) in enumerate(zip(ids, positions, strict=True)):
        experts = chosen[:, place, :]
        if mapping is not None:
            experts = _to_logical_ids(experts, mapping, number)
        yield (
            position,
            RecordedToken(
                phase="prefill" if mode == _EXTEND else "decode",
                chosen=experts,
                token_id=token_id,
            ),
        )


def _check_sum(counts: Array, what: str, n_arrays: int = 1) -> None:
    """Refuse counts below 0, or whose sum could leave int64, where NumPy's goes round."""
    if counts.min(initial=0) < 0:
        raise InvalidDataError(f"{what} holds {counts.min()}; counts must be 0 or more")
    largest = int(counts.max(initial=0))
    if largest * counts.size * n_arrays > np.iinfo(np.int64).max:
        raise InvalidDataError(f"{what} counts up to {largest}; no run selects that often")


def _to_logical_ids(experts: Array, mapping: Array, number: int) -> Array:
    if mapping.ndim != 2 or mapping.shape[0] != experts.shape[0]:
        raise InvalidDataError(
            f"{_MAP} has shape {list(mapping.shape)}, the record {experts.shape[0]} layers"
        )
    if experts.max(initial=-1) >= mapping.shape[1]:
        raise InvalidDataError(
            f"records[{number}]: physical expert {experts.max()} is not in {_MAP}, which has "
            f"{mapping.shape[1]}"
        )
    logical = np.take_along_axis(mapping, np.maximum(experts, 0), axis=1)
    if ((logical < 0) & (experts >= 0)).any():
        raise InvalidDataError(
            f"records[{number}]: a physical expert was chosen that {_MAP} gives no logical one"
        )
    return np.where(experts < 0, -1, logical)


def _to_logical_counts(counts: Array, mapping: Array) -> Array:
    if mapping.shape != counts.shape:
        raise InvalidDataError(
            f"{_MAP} has shape {list(mapping.shape)}, {_PHYSICAL} {list(counts.shape)}"
        )
    n_physical = counts.shape[1]
    if mapping.min(initial=0) < 0 or mapping.max(initial=-1) >= n_physical:
        raise InvalidDataError(
            f"{_MAP} must name logical experts below {n_physical}, the number of physical ones"
        )
    logical = np.zeros((counts.shape[0], int(mapping.max(initial=-1)) + 1), dtype=np.int64)
    for layer, row in enumerate(mapping):
        np.add.at(logical[layer], row, counts[layer])
    return logical


def _pass_id(record: Mapping[str, Any]) -> int:
    value = record.get("forward_pass_id") if isinstance(record, Mapping) else None
    if not isinstance(value, int):
        raise InvalidDataError("a record has no forward_pass_id")
    return value


def _field(record: Mapping[str, Any], name: str, number: int) -> Any:
    if not isinstance(record, Mapping) or record.get(name) is None:
        raise InvalidDataError(f"records[{number}] has no {name}")
    return record[name]


def _integers(values: object, what: str) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidDataError(f"{what} is no array: {error}") from error
    if array.dtype.kind not in "iu":
        raise InvalidDataError(f"{what} must hold integers, got {array.dtype}")
    return to_int64(array, what)
