"""How is a trace saved, and how is a saved one trusted again?

`<trace id>.json` holds the trace; the arrays that it describes lie in a content-addressed `.npz`
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_weights.atomic_files import JsonValue, write_json_atomic
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.array_files import (
    STORED_DTYPES,
    ArrayEntry,
    read_arrays,
    same_value,
    write_arrays,
)
from moe_weights.tracing.captures import Array
from moe_weights.tracing.documents import (
    DocumentError,
    DocumentProblem,
    read_document,
    schema_problems,
    semantic_problem,
)
from moe_weights.tracing.field_checks import require_file_id
from moe_weights.tracing.stage_profile import StageProfile
from moe_weights.tracing.trace import Trace, TraceArtifact, TraceSpan
from moe_weights.tracing.vocabulary import DeviceKind, DeviceRef

TRACE_SCHEMA_VERSION = "moe-weights.trace/v1"


def write_trace(folder: Path, trace: Trace, arrays: Mapping[str, Array] | None = None) -> Path:
    """Write a trace: first the side file, then `<trace id>.json`.

    Args:
        folder: For example `<run>/traces`; made when missing.
        trace: Its id becomes the file's name.
        arrays: Arrays of its artifacts, by artifact id; None writes none.

    Returns:
        The document's path.

    Raises:
        InvalidDataError: the id cannot name a file, or an array is of no artifact or is not what
            that says of it.
        OutputError: a file cannot be written.
    """
    require_file_id(trace.trace_id, "trace id")
    shapes = {artifact.artifact_id: artifact.shape for artifact in trace.artifacts}
    for artifact_id, array in (arrays or {}).items():
        if shapes.get(artifact_id) != array.shape:
            raise InvalidDataError(f'array "{artifact_id}": the trace has no such artifact')
    arrays_file, entries = write_arrays(folder, arrays or {})
    notes = {artifact.artifact_id: artifact.metadata for artifact in trace.artifacts}
    for artifact_id, entry in entries.items():
        for problem in _metadata_problems(notes[artifact_id], entry, f"$.arrays.{artifact_id}"):
            raise InvalidDataError(str(problem))
    document: dict[str, JsonValue] = {
        "schema_version": TRACE_SCHEMA_VERSION,
        **trace.to_dict(),
        "arrays_file": arrays_file,
        "arrays": dict(entries),
    }
    path = folder / f"{trace.trace_id}.json"
    write_json_atomic(path, document)
    return path


def load_trace(path: Path) -> tuple[Trace, dict[str, Array]]:
    """Load a saved trace and its arrays, or refuse both.

    Returns:
        The trace, and its arrays by artifact id.

    Raises:
        DocumentError: it is not readable, not strict JSON, breaks the schema, contradicts itself,
            or its side file is not the one that was written; all problems are listed.
    """
    document = read_document(path)
    problems = schema_problems(document, "trace.v1")
    if not problems:
        problems = _semantic_problems(document)
    if problems:
        raise DocumentError(str(path), problems)
    entries = [
        ArrayEntry(place=f"$.arrays.{artifact_id}", entry=entry)
        for artifact_id, entry in document["arrays"].items()
    ]
    arrays, problems = read_arrays(path.parent, document["arrays_file"], entries)
    if problems:
        raise DocumentError(str(path), problems)
    try:
        trace = _to_trace(document)
    except InvalidDataError as error:
        problem = semantic_problem("invalid_value", "$", str(error))
        raise DocumentError(str(path), [problem]) from error
    return trace, {
        artifact_id: arrays[entry["member"]] for artifact_id, entry in document["arrays"].items()
    }


def _semantic_problems(document: Mapping[str, Any]) -> list[DocumentProblem]:
    problems: list[DocumentProblem] = []
    try:
        require_file_id(document["id"], "id")
    except InvalidDataError as error:
        problems.append(semantic_problem("unsafe_id", "$.id", str(error)))
    span_ids = _unique_ids(document["spans"], "$.spans", "duplicate_span_id", problems)
    artifacts = _unique_ids(document["artifacts"], "$.artifacts", "duplicate_artifact_id", problems)
    for position, artifact in enumerate(document["artifacts"]):
        producer = artifact.get("producer_span_id")
        if producer is not None and producer not in span_ids:
            problems.append(
                semantic_problem(
                    "unknown_producer",
                    f"$.artifacts[{position}].producer_span_id",
                    f"{producer!r} is no span of the trace",
                )
            )
    for position, span in enumerate(document["spans"]):
        for key in ("input_artifacts", "output_artifacts"):
            place = f"$.spans[{position}].{key}"
            problems += _reference_problems(span[key], artifacts, place)
        for artifact_id in span["output_artifacts"]:
            producer = artifacts.get(artifact_id, {}).get("producer_span_id", span["id"])
            if producer != span["id"]:
                problems.append(
                    semantic_problem(
                        "producer_conflict",
                        f"$.spans[{position}].output_artifacts",
                        f"{artifact_id!r} names {producer!r} as its producer",
                    )
                )
    for artifact_id, entry in document["arrays"].items():
        place = f"$.arrays.{artifact_id}"
        if artifact_id not in artifacts:
            problems.append(semantic_problem("unknown_array", place, "no such artifact"))
        elif artifacts[artifact_id].get("shape") != entry["shape"]:
            message = f"the artifact has shape {artifacts[artifact_id].get('shape')}"
            problems.append(semantic_problem("shape_conflict", f"{place}.shape", message))
        else:
            problems += _metadata_problems(artifacts[artifact_id]["metadata"], entry, place)
    return problems


def _metadata_problems(
    metadata: Mapping[str, Any], entry: Mapping[str, Any], place: str
) -> list[DocumentProblem]:
    """Return what the notes of an artifact, which are free, say otherwise than its array's entry.

    The entry is held against the array itself. A dtype that is not stored as it is, such as
    bfloat16, is another one in the entry.
    """
    told, problems = str(metadata.get("dtype")), []
    if told in STORED_DTYPES and told != entry["dtype"]:
        message = f"the artifact's metadata says {told}"
        problems.append(semantic_problem("dtype_conflict", f"{place}.dtype", message))
    summary = metadata.get("summary")
    for name, value in summary.items() if isinstance(summary, Mapping) else ():
        is_text = isinstance(value, str)  # somebody's own words
        if (
            name in entry["summary"]
            and not is_text
            and not same_value(entry["summary"][name], value)
        ):
            message = f"the artifact's metadata says {value}"
            problems.append(
                semantic_problem("summary_conflict", f"{place}.summary.{name}", message)
            )
    return problems


def _unique_ids(
    items: list[dict[str, Any]], place: str, code: str, problems: list[DocumentProblem]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for position, item in enumerate(items):
        if item["id"] in found:
            problems.append(
                semantic_problem(code, f"{place}[{position}].id", f"{item['id']!r} occurs twice")
            )
        found.setdefault(item["id"], item)
    return found


def _reference_problems(
    references: list[str], artifacts: Mapping[str, object], place: str
) -> list[DocumentProblem]:
    problems = [
        semantic_problem("unknown_artifact", f"{place}[{position}]", f"{reference!r} is not there")
        for position, reference in enumerate(references)
        if reference not in artifacts
    ]
    if len(set(references)) != len(references):
        problems.append(semantic_problem("duplicate_reference", place, "an id occurs twice"))
    return problems


def _to_trace(document: Mapping[str, Any]) -> Trace:
    return Trace(
        trace_id=document["id"],
        device=_to_device(document["device"]),
        spans=tuple(map(_to_span, document["spans"])),
        artifacts=tuple(
            TraceArtifact(
                artifact_id=artifact["id"],
                kind=artifact["kind"],
                producer_span_id=artifact.get("producer_span_id"),
                shape=None if "shape" not in artifact else tuple(artifact["shape"]),
                metadata=artifact["metadata"],
            )
            for artifact in document["artifacts"]
        ),
        metadata=document["metadata"],
    )


def _to_span(span: Mapping[str, Any]) -> TraceSpan:
    profile = span.get("profile")
    if profile is not None:
        device = profile.get("device")
        profile = StageProfile(
            **{key: value for key, value in profile.items() if key != "device"},
            device=None if device is None else _to_device(device),
        )
    return TraceSpan(
        span_id=span["id"],
        name=span["name"],
        profile=profile,
        input_artifact_ids=tuple(span["input_artifacts"]),
        output_artifact_ids=tuple(span["output_artifacts"]),
        metadata=span["metadata"],
    )


def _to_device(device: Mapping[str, str]) -> DeviceRef:
    return DeviceRef(kind=DeviceKind(device["kind"]), label=device["label"])
