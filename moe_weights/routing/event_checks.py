"""Does one raw event contradict itself?

What all events promise is checked here; a layer's numbers are for the file of its version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.issues import Issue
from moe_weights.routing.probabilities import is_close
from moe_weights.routing.router_layer_checks import check_not_captured, find_router_layer_faults
from moe_weights.routing.softmax_layer_checks import find_softmax_layer_faults

_EVENT_FIELDS = ("token_id", "token_text", "context_length", "timing_ms")


def validate_raw_event_semantics(event: JsonObject, place: str = "") -> list[Issue]:
    """Return the contradictions within one event, of scope `event`.

    Args:
        event: A payload that satisfies its schema, raw/v0.1.0 or raw/v0.2.0.
        place: `<file>:<line>` of the event, for the issues.

    Tolerance: 1e-6, absolute (wider only where a v0.2.0 layer declares a half-precision router).
    """
    head = f"token {event['token_index']}"
    return [Issue("event", code, f"{head}{text}", place) for code, text in _find_faults(event)]


def _find_faults(event: JsonObject) -> Iterator[tuple[str, str]]:
    is_v2 = event["schema_version"] == "raw/v0.2.0"
    if is_v2:
        for code, text in check_not_captured(event, _EVENT_FIELDS):
            yield code, f": {text}"
    timing = event["timing_ms"]
    if timing is not None:
        for text in _find_timing_faults(timing):
            yield "decode_duration_mismatch", text
    seen: set[int] = set()
    find = find_router_layer_faults if is_v2 else find_softmax_layer_faults
    for layer in event["layers"]:
        index = layer["layer_index"]
        if index in seen:
            yield "duplicate_layer_index", f": layer {index} is given twice; keep one of them"
        seen.add(index)
        for code, text in find(layer):
            yield code, f", layer {index}: {text}"


def _find_timing_faults(timing: dict[str, Any]) -> Iterator[str]:
    span = timing["decode_end"] - timing["decode_start"]
    if not is_close(timing["decode_duration"], span):
        yield (
            f": decode_duration is {timing['decode_duration']} ms, decode_end - decode_start is "
            f"{span} ms"
        )
