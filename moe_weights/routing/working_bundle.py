"""How does a trace survive a crash while it grows?

Each token is checked and appended to a file beside the bundle's place; at the end the folder is
renamed to the bundle. A process that dies loses at most the token it was writing, and the next one
goes on from there. Memory does not grow with the trace.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from moe_weights.atomic_files import (
    open_regular_file,
    remove_file,
    remove_temporary_siblings,
    to_json,
    write_json_atomic,
    write_text_atomic,
)
from moe_weights.errors import MoeWeightsError
from moe_weights.routing.artifacts import (
    LAYOUT_FILE,
    MANIFEST_FILE,
    RAW_TRACE_FILE,
    JsonObject,
    payload_version,
)
from moe_weights.routing.builders import build_layer_grid_layout
from moe_weights.routing.bundle_checks import BundleChecks
from moe_weights.routing.bundle_files import iter_ndjson, load_json_artifact
from moe_weights.routing.bundle_writer import (
    check_values,
    publish_bundle,
    refuse_existing,
)
from moe_weights.routing.issues import (
    schema_error,
    semantic_error,
)
from moe_weights.routing.json_text import to_json_line
from moe_weights.routing.run_ids import bundle_path
from moe_weights.routing.schema_check import find_schema_issues
from moe_weights.routing.trace_file import TraceFile
from moe_weights.routing.working_folder import (
    OPTIONAL_FILES,
    not_writable,
    refuse_unfinished,
    remove_working_folder,
    working_path,
)

_LOG = logging.getLogger(__name__)


class WorkingBundle:
    """A bundle that grows by one checked event at a time.

    Made by `create_working_bundle` or `resume_working_bundle`; a context manager that keeps the
    working folder, so that an unfinished run can be resumed. Of two processes one gets it.

    Attributes:
        manifest: Content of manifest.json.
        run_dir: Where the bundle will be.
        working_dir: Where it grows.
        n_dropped_bytes: Length of a half-written last token that `resume` cut off, bytes.
    """

    def __init__(
        self,
        run_dir: Path,
        manifest: JsonObject,
        trace: TraceFile,
        made_folders: Sequence[Path] = (),
    ) -> None:
        """Take over an open, locked trace; use the two functions instead.

        Args:
            run_dir: Where the bundle will be.
            manifest: Its manifest.
            trace: Its trace.
            made_folders: Folders around the working one that did not exist before, innermost last.
        """
        self.manifest = manifest
        self.run_dir = run_dir
        self.working_dir = working_path(run_dir)
        self.n_dropped_bytes = 0
        self._trace = trace
        self._made_folders = tuple(made_folders)
        self._checks = BundleChecks(manifest)
        self._version = payload_version("manifest", manifest)

    def __enter__(self) -> WorkingBundle:
        """Return itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close the trace; the working folder stays unless the bundle was promoted."""
        self.close()

    @property
    def n_events(self) -> int:
        """Events so far: also the next token's index."""
        return self._checks.n_raw_events

    @property
    def layer_expert_counts(self) -> list[tuple[int, int]]:
        """(layer index, routed experts) of the layers seen so far, by layer."""
        return sorted(self._checks.expert_counts.items())

    def append(self, event: JsonObject) -> None:
        """Check an event and write it; when this returns, a crash does not lose it.

        Args:
            event: From `build_token_complete_event` or `build_routed_token_event`, of the
                manifest's version and run id, with `token_index == n_events`.

        Raises:
            BundleError: the event is refused; nothing was written and the next may follow.
            OutputError: it cannot be written; the trace is as it was before.
        """
        place = f"raw_events[{self.n_events}]"
        issues = find_schema_issues("raw_event", event, place, place, self._version)
        if issues:
            raise schema_error(issues)
        texts = {"run_id": event["run_id"], "token_text": event["token_text"]}
        check_values(place, texts, place)
        contradictions = self._checks.find_raw_event_issues(event, place)
        if contradictions:
            raise semantic_error(contradictions)
        self._trace.append(to_json_line(event))
        self._checks.note_raw_event(event)

    def build_layout(self, layout_id: str = "default-grid") -> JsonObject:
        """Return a grid layout of the layers seen so far.

        Raises:
            InvalidDataError: no event was appended yet.
        """
        return build_layer_grid_layout(
            run_id=self.manifest["run_id"],
            layout_id=layout_id,
            layer_expert_counts=self.layer_expert_counts,
        )

    def promote(self, layout: JsonObject | None = None) -> Path:
        """Turn the working folder into the bundle.

        Args:
            layout: None takes `build_layout()`.

        Returns:
            The bundle's folder.

        Raises:
            BundleError: the layout is refused; the working folder stays.
            InvalidDataError: no layout was given and no event was appended.
            BundleExistsError: there is something at the bundle's place; the working folder stays.
            OutputError: it cannot be written; the working folder stays.
        """
        layout = self.build_layout() if layout is None else layout
        issues = find_schema_issues("layout", layout, "layout", "layout")
        if issues:
            raise schema_error(issues)
        check_values("layout", layout, "layout")
        contradictions = self._checks.find_layout_issues(layout, "layout")
        if contradictions:
            raise semantic_error(contradictions)
        refuse_existing(self.run_dir)
        write_text_atomic(self.working_dir / LAYOUT_FILE, to_json(layout))
        publish_bundle(self.working_dir, self.run_dir)
        self.close()
        return self.run_dir

    def discard(self) -> None:
        """Remove the working folder with all its events, and the folders that were made for it.

        Raises:
            OutputError: it cannot be removed, or there is something else in it.
        """
        remove_working_folder(self.working_dir)
        self.close()
        for folder in reversed(self._made_folders):
            with contextlib.suppress(OSError):  # something else was put there since
                folder.rmdir()

    def close(self) -> None:
        """Close the trace; the working folder stays and can be resumed."""
        self._trace.close()

    def _read_back(self) -> None:
        """Cut off a half-written last token and check all others, one at a time."""
        path = self._trace.path
        self.n_dropped_bytes = self._trace.cut_off_unfinished_line()
        if self.n_dropped_bytes:
            _LOG.warning("%s: cut off %d bytes of a token", path, self.n_dropped_bytes)
        with open_regular_file(path) as lines:
            for event, place in iter_ndjson(lines, path):
                issues = find_schema_issues("raw_event", event, "raw_event", place, self._version)
                if issues:
                    raise schema_error(issues)
                contradictions = self._checks.find_raw_event_issues(event, place)
                if contradictions:
                    raise semantic_error(contradictions)
                self._checks.note_raw_event(event)


def create_working_bundle(
    root_dir: str | os.PathLike[str], manifest: JsonObject, *, durable: bool = True
) -> WorkingBundle:
    """Start a bundle that grows by one event at a time.

    Args:
        root_dir: Folder of all bundles; made when missing.
        manifest: From `build_manifest`.
        durable: Flush every token to the disk, so that it survives the machine and not only the
            process; costs a few milliseconds a token.

    Raises:
        UsageError: (a ValueError) the run id is no plain path, or an unfinished run of this id is
            there already.
        BundleError: the manifest breaks its schema.
        BundleExistsError: there is a bundle of this id.
        OutputError: the folder cannot be made or written to.
    """
    issues = find_schema_issues("manifest", manifest, "manifest", "manifest")
    if issues:
        raise schema_error(issues)
    run_dir = bundle_path(Path(root_dir), manifest["run_id"])
    check_values("manifest", manifest, "manifest")
    refuse_existing(run_dir)
    folder = working_path(run_dir)
    refuse_unfinished(folder)
    try:
        made = [parent for parent in reversed(folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        trace = TraceFile(folder / RAW_TRACE_FILE, durable=durable)
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        refuse_unfinished(folder)  # another process may have been faster
        trace.clear()
        write_json_atomic(folder / MANIFEST_FILE, manifest)
    except BaseException:
        trace.close()
        raise
    return WorkingBundle(run_dir, manifest, trace, made)


def resume_working_bundle(
    root_dir: str | os.PathLike[str], run_id: str, *, durable: bool = True
) -> WorkingBundle:
    """Go on with a run that was not promoted; its events are checked again.

    Args:
        root_dir: As given to `create_working_bundle`.
        run_id: As in its manifest.
        durable: See `create_working_bundle`.

    Raises:
        MissingFileError: (also a FileNotFoundError) there is no unfinished run of this id.
        BundleError: its files are damaged, beyond a half-written last token.
        UsageError: another process is writing it, or the run id is no plain path.
        OutputError: it cannot be written to.
    """
    run_dir = bundle_path(Path(root_dir), run_id)
    folder = working_path(run_dir)
    try:
        manifest = load_json_artifact(folder / MANIFEST_FILE, "manifest")
        trace = TraceFile(folder / RAW_TRACE_FILE, durable=durable)
    except OSError as error:
        if isinstance(error, MoeWeightsError):
            raise
        raise not_writable(folder, error) from error
    bundle = WorkingBundle(run_dir, manifest, trace)
    try:
        remove_temporary_siblings(folder)
        for name in OPTIONAL_FILES:
            remove_file(folder / name)
        bundle._read_back()
    except BaseException:
        bundle.close()
        raise
    return bundle
