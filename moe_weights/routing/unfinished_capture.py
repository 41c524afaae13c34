"""What becomes of a capture that was killed, or failed while its model ran?

Its tokens lie whole in the working folder beside the bundle's place. Nothing takes them away but
the person who asks for it: they are kept as a bundle that says it is unfinished, or removed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal, TypeAlias

from moe_weights.atomic_files import write_json_atomic
from moe_weights.errors import UsageError
from moe_weights.routing.artifacts import MANIFEST_FILE, RAW_TRACE_FILE
from moe_weights.routing.bundle_files import load_json_artifact, read_json_object
from moe_weights.routing.issues import BundleError
from moe_weights.routing.run_ids import bundle_path
from moe_weights.routing.trace_file import TraceFile
from moe_weights.routing.working_bundle import resume_working_bundle
from moe_weights.routing.working_folder import working_path

UnfinishedAction: TypeAlias = Literal["salvage", "discard"]


def refuse_unfinished_capture(root: Path, run_id: str) -> None:
    """Refuse to capture where a capture lies that was not finished.

    Args:
        root: Folder of bundles.
        run_id: Id of the bundle.

    Raises:
        UsageError: saying what lies there and what can be done with it, or that another process
            is writing it.
    """
    run_dir = bundle_path(root, run_id)
    folder = working_path(run_dir)
    if not os.path.lexists(folder / MANIFEST_FILE):
        return
    n_tokens = 0
    if os.path.lexists(folder / RAW_TRACE_FILE):
        with contextlib.closing(_open_trace(folder)) as trace:
            n_tokens = trace.count_lines()
    raise UsageError(
        f"{folder} holds {n_tokens} tokens of a capture that was not finished{_told(folder)}; "
        f"run the same command with --unfinished salvage to keep them as the bundle {run_dir}, "
        "with --unfinished discard to remove them and capture anew, or use another --run-id"
    )


def salvage_capture(root: Path, run_id: str) -> tuple[Path, int]:
    """Make a bundle of the tokens of a capture that was not finished.

    The manifest's `capture_config` then says so: `unfinished` with the bytes of a half-written last
    token that were cut off.

    Args:
        root: Folder of bundles.
        run_id: Id of the bundle.

    Returns:
        (folder of the bundle, tokens in it).

    Raises:
        UsageError: there is no such capture, it has no token, or another process is writing it.
        BundleError: its files are damaged, beyond a half-written last token.
        BundleExistsError: there is a bundle of this id.
        OutputError: it cannot be written to.
    """
    folder = working_path(bundle_path(root, run_id))
    if not os.path.lexists(folder / MANIFEST_FILE):
        raise UsageError(f"{folder} is not there: no capture to salvage; drop --unfinished")
    _note_unfinished(folder)
    with resume_working_bundle(root, run_id) as bundle:
        if bundle.n_events == 0:
            raise UsageError(f"{folder} holds no whole token; remove it with --unfinished discard")
        return bundle.promote(), bundle.n_events


def _note_unfinished(folder: Path) -> None:
    """Have the manifest say what resuming is about to cut off: whoever is killed then still knows.

    Raises:
        UsageError: see `_open_trace`.
        BundleError: the manifest is damaged.
        OutputError: it cannot be written.
    """
    with contextlib.closing(_open_trace(folder)) as trace:
        manifest = load_json_artifact(folder / MANIFEST_FILE, "manifest")
        config = manifest.setdefault("capture_config", {})
        noted = config.get("unfinished")
        before = noted.get("dropped_bytes") if isinstance(noted, dict) else 0
        n_bytes = trace.count_unfinished_bytes()
        if isinstance(before, int):  # of a salvage that was killed
            n_bytes = max(n_bytes, before)
        config["unfinished"] = {"dropped_bytes": n_bytes}
        write_json_atomic(folder / MANIFEST_FILE, manifest)


def _open_trace(folder: Path) -> TraceFile:
    """Open the trace of a capture.

    Raises:
        UsageError: another process is writing it, or it is no file.
    """
    path = folder / RAW_TRACE_FILE
    try:
        return TraceFile(path, durable=False)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _told(folder: Path) -> str:
    """Return when it was started and of which model, as far as its manifest says."""
    try:
        manifest = read_json_object(folder / MANIFEST_FILE)
    except BundleError:
        return ""
    return f" ({manifest.get('model_id')}, started {manifest.get('created_at')})"
