"""How does a bundle come to be on disk: checked in full, whole or not at all?"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from moe_weights.atomic_files import publish_folder, to_json
from moe_weights.errors import OutputError, UsageError
from moe_weights.routing.artifacts import (
    CONTINGENCY_FILE,
    DERIVED_FILE,
    LAYOUT_FILE,
    MANIFEST_FILE,
    MOTIF_LEDGER_FILE,
    RAW_TRACE_FILE,
    JsonObject,
    payload_version,
)
from moe_weights.routing.bundle_checks import validate_run_bundle_semantics
from moe_weights.routing.issues import (
    MAX_ISSUES,
    BundleError,
    BundleExistsError,
    Issue,
    schema_error,
    semantic_error,
)
from moe_weights.routing.json_text import JsonFaultError, check_json_value, to_json_line
from moe_weights.routing.run_ids import UNFINISHED_PREFIX, bundle_path, check_run_id
from moe_weights.routing.schema_check import bundle_payloads, find_schema_issues

_FOLDER_NUMBERS = itertools.count()  # two threads may write bundles at the same time


def write_run_bundle(
    root_dir: str | os.PathLike[str],
    manifest: JsonObject,
    raw_events: Iterable[JsonObject],
    layout: JsonObject,
    *,
    derived_events: Iterable[JsonObject] | None = None,
    motif_ledger: JsonObject | None = None,
    contingency: JsonObject | None = None,
) -> Path:
    """Check a bundle and write it to `root_dir / run_id`.

    For traces that do not fit into memory, or must survive a crash, see `WorkingBundle`.

    Args:
        root_dir: Folder of all bundles; made when missing.
        manifest: From `build_manifest`.
        raw_events: In token order.
        layout: From `build_layer_grid_layout`.
        derived_events: None writes no derived.ndjson.
        motif_ledger: None writes no motif_ledger.json.
        contingency: None writes no contingency.json.

    Returns:
        The bundle's folder.

    Raises:
        UsageError: (a ValueError) the run id is no plain path, or events are no sequence.
        BundleError: (a ValueError) a payload breaks its schema, or payloads contradict one another.
        BundleExistsError: (also a FileExistsError) there is something at the bundle's place.
        OutputError: the files cannot be written; nothing is left behind.
    """
    events = _to_list(raw_events, "raw_events")
    derived = None if derived_events is None else _to_list(derived_events, "derived_events")
    run_dir = _checked_path(Path(root_dir), manifest)
    _check_payloads(manifest, events, layout, derived, motif_ledger, contingency)
    refuse_existing(run_dir)
    json_files = {
        MANIFEST_FILE: manifest,
        LAYOUT_FILE: layout,
        MOTIF_LEDGER_FILE: motif_ledger,
        CONTINGENCY_FILE: contingency,
    }
    traces = {RAW_TRACE_FILE: events, DERIVED_FILE: derived}
    with new_folder(run_dir) as folder:
        for name, payload in json_files.items():
            if payload is not None:
                (folder / name).write_bytes(to_json(payload).encode("utf-8"))
        for name, payloads in traces.items():
            if payloads is not None:
                write_lines(folder / name, payloads)
        publish_bundle(folder, run_dir)
    return run_dir


@contextlib.contextmanager
def new_folder(run_dir: Path) -> Iterator[Path]:
    """Make a folder beside a bundle's place; what goes wrong inside leaves nothing behind.

    Raises:
        OutputError: it cannot be made or written to.
    """
    made: list[Path] = []
    name = f"{UNFINISHED_PREFIX}tmp-{os.getpid()}-{next(_FOLDER_NUMBERS)}"
    folder = run_dir.parent / name
    try:
        for parent in reversed(run_dir.parents):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                made.append(parent)
        folder.mkdir()
        made.append(folder)
        yield folder
    except BaseException as error:
        if folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise OutputError(_failure_message(run_dir, error)) from error
        raise


def publish_bundle(folder: Path, run_dir: Path) -> None:
    """Give a finished folder its name.

    Raises:
        BundleExistsError: there is something at its place.
        OutputError: it cannot be renamed.
    """
    try:
        publish_folder(folder, run_dir)
    except FileExistsError as error:
        raise _exists_error(run_dir) from error


def refuse_existing(run_dir: Path) -> None:
    """Refuse to write where something is.

    Raises:
        BundleExistsError: naming it.
    """
    if os.path.lexists(run_dir):
        raise _exists_error(run_dir)


def write_lines(path: Path, payloads: Iterable[Mapping[str, object]]) -> None:
    """Write NDJSON, one payload at a time; nothing at all for no payloads."""
    with path.open("wb") as stream:
        for payload in payloads:
            stream.write(to_json_line(payload))


def check_values(artifact: str, payload: object, place: str = "") -> None:
    """Refuse a payload that strict JSON cannot say.

    Raises:
        BundleError: of scope "file".
    """
    try:
        check_json_value(payload, artifact)
    except JsonFaultError as fault:
        issue = Issue("file", fault.code, fault.message, place)
        raise BundleError(
            f"run bundle cannot be written: {fault.code}: {fault.message}", [issue]
        ) from fault


def _to_list(events: object, name: str) -> list[JsonObject]:
    if not isinstance(events, Iterable) or isinstance(events, str | bytes | Mapping):
        raise UsageError(
            f"{name} must be a sequence of events, got {type(events).__name__}; give [] for none"
        )
    return list(events)


def _checked_path(root_dir: Path, manifest: object) -> Path:
    run_id = manifest.get("run_id") if isinstance(manifest, Mapping) else None
    if isinstance(run_id, str) and run_id:
        check_run_id(run_id)
        return bundle_path(root_dir, run_id)
    return root_dir  # the schema refuses the manifest next


def _check_payloads(
    manifest: JsonObject,
    events: Sequence[JsonObject],
    layout: JsonObject,
    derived: Sequence[JsonObject] | None,
    motif_ledger: JsonObject | None,
    contingency: JsonObject | None,
) -> None:
    issues: list[Issue] = []
    version = payload_version("manifest", manifest)
    for artifact, payload, location in bundle_payloads(
        manifest,
        events,
        layout,
        derived_events=derived,
        motif_ledger=motif_ledger,
        contingency=contingency,
    ):
        found = find_schema_issues(artifact, payload, location, location, version)
        issues += found
        if not found and artifact != "raw_event":  # every field of a raw event has its type
            check_values(location, payload, location)
        if len(issues) >= MAX_ISSUES:
            break
    if issues:
        raise schema_error(issues)
    for number, event in enumerate(events):
        check_values(f"raw_events[{number}]", _texts(event), f"raw_events[{number}]")
    contradictions = validate_run_bundle_semantics(
        manifest,
        events,
        layout,
        derived_events=derived,
        motif_ledger=motif_ledger,
        contingency=contingency,
    )
    if contradictions:
        raise semantic_error(contradictions)


def _texts(event: JsonObject) -> JsonObject:
    return {"run_id": event["run_id"], "token_text": event["token_text"]}


def _exists_error(run_dir: Path) -> BundleExistsError:
    return BundleExistsError(
        f"there is something at {run_dir} already; a bundle is never replaced: use another run_id "
        "or remove it"
    )


def _failure_message(run_dir: Path, error: OSError) -> str:
    cause = error.strerror or str(error)
    return f"cannot write the bundle {run_dir}: {cause}; nothing is left behind"
