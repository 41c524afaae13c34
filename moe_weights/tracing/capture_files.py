"""How is a capture set saved, and how is a saved one trusted again?

`<name>.json` holds what a person reads; the arrays lie in a content-addressed `.npz` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_weights.atomic_files import JsonValue, write_json_atomic
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.array_files import ArrayEntry, read_arrays, write_arrays
from moe_weights.tracing.capture_set import CaptureSet, capture_problem
from moe_weights.tracing.captures import Array, HookCapture
from moe_weights.tracing.documents import (
    DocumentError,
    DocumentProblem,
    read_document,
    schema_problems,
    semantic_problem,
)
from moe_weights.tracing.vocabulary import HookPoint

CAPTURE_SCHEMA_VERSION = "moe-weights.capture/v1"


def write_captures(path: Path, captures: CaptureSet) -> Path:
    """Write a capture set: first the side file, then the document.

    Args:
        path: The document, `<name>.json`; an existing one is replaced.
        captures: Those without any array are left out.

    Returns:
        `path`.

    Raises:
        InvalidDataError: an array does not hold real numbers, the name does not end in .json, or
            the captures contradict one another; then nothing is written.
        OutputError: a file cannot be written.
    """
    if path.suffix != ".json":
        raise InvalidDataError(f"{path}: a capture's document is named <name>.json")
    kept = [capture for capture in captures.captures if capture.arrays]
    arrays = {
        f"{position}.{name}": array
        for position, capture in enumerate(kept)
        for name, array in capture.arrays.items()
    }
    shapes = {key: {"shape": list(array.shape)} for key, array in arrays.items()}
    problems = _semantic_problems(_to_document(captures, kept, None, shapes))
    if problems:
        raise InvalidDataError(f"{path}: it would be refused when it is loaded: {problems[0]}")
    arrays_file, entries = write_arrays(path.parent, arrays)
    write_json_atomic(path, _to_document(captures, kept, arrays_file, entries))
    return path


def load_captures(path: Path) -> CaptureSet:
    """Load a saved capture set, or refuse it whole.

    Raises:
        DocumentError: it is not readable, not strict JSON, breaks the schema, contradicts itself,
            or its side file is not the one that was written; all problems are listed.
    """
    document = read_document(path)
    problems = schema_problems(document, "capture.v1")
    if not problems:
        problems = _semantic_problems(document)
    if problems:
        raise DocumentError(str(path), problems)
    entries = [
        ArrayEntry(place=f"$.captures[{position}].arrays.{name}", entry=entry)
        for position, capture in enumerate(document["captures"])
        for name, entry in capture["arrays"].items()
    ]
    arrays, problems = read_arrays(path.parent, document["arrays_file"], entries)
    if problems:
        raise DocumentError(str(path), problems)
    try:
        return _to_capture_set(document, arrays)
    except InvalidDataError as error:
        problem = semantic_problem("invalid_value", "$", str(error))
        raise DocumentError(str(path), [problem]) from error


def _to_document(
    captures: CaptureSet,
    kept: Sequence[HookCapture],
    arrays_file: JsonValue,
    entries: Mapping[str, JsonValue],
) -> dict[str, JsonValue]:
    documents: list[JsonValue] = [
        {
            "hook_point": str(capture.hook_point),
            "layer": capture.layer,
            "step": capture.step,
            "arrays": {name: entries[f"{position}.{name}"] for name in capture.arrays},
            "metadata": dict(capture.metadata),
        }
        for position, capture in enumerate(kept)
    ]
    return {
        "schema_version": CAPTURE_SCHEMA_VERSION,
        "source": dict(captures.source),
        "prompt": captures.prompt,
        "prompt_ids": list(captures.prompt_ids),
        "decode_ids": list(captures.decode_ids),
        "num_layers": captures.num_layers,
        "arrays_file": arrays_file,
        "captures": documents,
    }


def _semantic_problems(document: Mapping[str, Any]) -> list[DocumentProblem]:
    problems: list[DocumentProblem] = []
    seen: set[tuple[object, ...]] = set()
    steps = {capture["step"] for capture in document["captures"]} - {None}
    n_steps = len(document["decode_ids"]) or len(steps)
    problems += _token_problems(document)
    for position, capture in enumerate(document["captures"]):
        place = f"$.captures[{position}]"
        key = (capture["hook_point"], capture["layer"], capture["step"])
        if key in seen:
            message = f"{key[0]}, layer {key[1]}, step {key[2]} occurs twice"
            problems.append(semantic_problem("duplicate_capture", place, message))
        seen.add(key)
        problem = capture_problem(*key, document["num_layers"])
        if problem is not None:
            problems.append(semantic_problem(problem[0], place, problem[1]))
        elif capture["step"] is not None and capture["step"] >= n_steps:
            what = "decode_ids" if document["decode_ids"] else "steps with a capture"
            message = f"step {capture['step']}, but there are {n_steps} {what}"
            problems.append(semantic_problem("step_out_of_range", f"{place}.step", message))
        problems += _shape_problems(capture, place, document)
    return problems


def _token_problems(document: Mapping[str, Any]) -> list[DocumentProblem]:
    """Return the token ids that no logits of the run have a place for."""
    shapes = [
        capture["arrays"]["logits"]["shape"]
        for capture in document["captures"]
        if "logits" in capture["arrays"]
    ]
    vocabulary_size = max((shape[-1] for shape in shapes if shape), default=None)
    if vocabulary_size is None:
        return []
    return [
        semantic_problem(
            "token_id_out_of_range",
            f"$.{name}[{position}]",
            f"{token_id}, but the logits are over {vocabulary_size} tokens",
        )
        for name in ("prompt_ids", "decode_ids")
        for position, token_id in enumerate(document[name])
        if token_id >= vocabulary_size
    ]


def _shape_problems(
    capture: Mapping[str, Any], place: str, document: Mapping[str, Any]
) -> list[DocumentProblem]:
    n_tokens = 1 if capture["hook_point"] == HookPoint.DECODE_STEP else len(document["prompt_ids"])
    entry = capture["arrays"].get("hidden_states")
    if entry is None or not document["prompt_ids"] or not entry["shape"]:
        return []
    if entry["shape"][0] == n_tokens:
        return []
    message = f"{entry['shape'][0]} tokens, but the run had {n_tokens} there"
    return [
        semantic_problem("token_count_mismatch", f"{place}.arrays.hidden_states.shape", message)
    ]


def _to_capture_set(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> CaptureSet:
    return CaptureSet(
        source=document["source"],
        prompt=document["prompt"],
        prompt_ids=tuple(document["prompt_ids"]),
        decode_ids=tuple(document["decode_ids"]),
        num_layers=document["num_layers"],
        captures=tuple(
            HookCapture(
                HookPoint(capture["hook_point"]),
                capture["layer"],
                capture["step"],
                metadata=capture["metadata"],
                **{name: arrays[entry["member"]] for name, entry in capture["arrays"].items()},
            )
            for capture in document["captures"]
        ),
    )
