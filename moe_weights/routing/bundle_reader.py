"""How is a bundle read, whole or one event at a time, and refused with file and line?

Each line is parsed strictly, held against its schema, then against itself and what came before.
The trace is never in memory as a whole unless `load_run_bundle` is asked for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from moe_weights.atomic_files import open_regular_file
from moe_weights.errors import UsageError
from moe_weights.routing.artifacts import (
    CONTINGENCY_FILE,
    DERIVED_FILE,
    LAYOUT_FILE,
    MANIFEST_FILE,
    MOTIF_LEDGER_FILE,
    RAW_TRACE_FILE,
    ArtifactName,
    JsonObject,
    payload_version,
)
from moe_weights.routing.bundle_checks import BundleChecks
from moe_weights.routing.bundle_files import (
    check_line_values,
    check_readable,
    is_there,
    iter_ndjson,
    read_json_object,
    unreadable_error,
)
from moe_weights.routing.issues import (
    MAX_ISSUES,
    BundleError,
    Issue,
    schema_error,
    semantic_error,
    sort_issues,
)
from moe_weights.routing.run_ids import check_run_id, is_named_after
from moe_weights.routing.schema_check import find_schema_issues

_LOG = logging.getLogger(__name__)


def load_run_bundle(run_dir: str | os.PathLike[str]) -> JsonObject:
    """Read and check a whole bundle.

    Args:
        run_dir: The folder with manifest.json.

    Returns:
        `manifest`, `raw_events`, `layout`, and `derived_events`, `motif_ledger`, `contingency`,
        which are None when the bundle lacks them.

    Raises:
        BundleError: (a ValueError) lists what is wrong, each with scope, code and place.
        MissingFileError: (also a FileNotFoundError) a required file is not there.
    """
    reader = open_run_bundle(run_dir)
    walk = _Walk(reader)
    raw_events = list(walk.raw_events())
    derived_events = list(walk.derived_events()) if reader.has_derived_events else None
    walk.finish()
    return {
        "manifest": reader.manifest,
        "raw_events": raw_events,
        "layout": reader.layout,
        "derived_events": derived_events,
        "motif_ledger": reader.motif_ledger,
        "contingency": reader.contingency,
    }


def validate_run_bundle(run_dir: str | os.PathLike[str]) -> list[Issue]:
    """Check a bundle in one pass that holds one event at a time.

    Returns:
        Up to 100 issues; empty when `load_run_bundle` would take the bundle.
    """
    try:
        for _event in open_run_bundle(run_dir).checked_raw_events():
            pass
    except BundleError as error:
        return list(error.issues)
    return []


def open_run_bundle(run_dir: str | os.PathLike[str]) -> RunBundleReader:
    """Open a bundle for reading event by event; everything but the traces is read and checked.

    Raises:
        BundleError, MissingFileError: see `load_run_bundle`.
    """
    return RunBundleReader(Path(run_dir))


class RunBundleReader:
    """A bundle whose traces stay on disk.

    Attributes:
        run_dir: The folder.
        manifest: Content of manifest.json.
        layout: Content of layout.json.
        motif_ledger: Content of motif_ledger.json; None without one.
        contingency: Content of contingency.json; None without one.
        has_derived_events: Whether there is a derived.ndjson.
    """

    def __init__(self, run_dir: Path) -> None:
        """Read and check everything but the traces; see `open_run_bundle`."""
        self.run_dir = run_dir
        issues: list[Issue] = []
        self.manifest = self._read_json(MANIFEST_FILE, "manifest", issues)
        if not issues:
            _check_run_id(self.manifest["run_id"], run_dir / MANIFEST_FILE)
        check_readable(run_dir / RAW_TRACE_FILE)
        self.layout = self._read_json(LAYOUT_FILE, "layout", issues)
        self.motif_ledger = self._read_optional(MOTIF_LEDGER_FILE, "motif_ledger", issues)
        self.contingency = self._read_optional(CONTINGENCY_FILE, "contingency", issues)
        self.has_derived_events = is_there(run_dir / DERIVED_FILE)
        if self.has_derived_events:
            check_readable(run_dir / DERIVED_FILE)
        if issues:
            raise schema_error(issues)
        if not is_named_after(run_dir, self.manifest["run_id"]):
            _LOG.warning("%s holds the bundle of run_id %s", run_dir, self.manifest["run_id"])

    def raw_events(self) -> Iterator[JsonObject]:
        """Give the events one at a time, each checked alone and against those before it.

        The first fault ends the walk; after the last event the layout is held against the trace.

        Raises:
            BundleError: naming file and line.
        """
        walk = _Walk(self, most_issues=1)
        yield from walk.raw_events()
        walk.finish()

    def checked_raw_events(self) -> Iterator[JsonObject]:
        """Give the events one at a time; after the last one every other file is checked as well.

        Unlike `raw_events`, faults are gathered and raised together at the end, so what was given
        must be thrown away when it raises. Events from the first faulty one on are not given.

        Raises:
            BundleError: listing up to 100 faults of the whole bundle.
        """
        walk = _Walk(self)
        yield from walk.raw_events()
        for _event in walk.derived_events() if self.has_derived_events else ():
            pass
        walk.finish()

    def derived_events(self) -> Iterator[JsonObject]:
        """Give the derived events one at a time, each held against its schema.

        Raises:
            BundleError: naming file and line.
        """
        walk = _Walk(self, most_issues=1)
        for event, _place in walk.read_lines(DERIVED_FILE, "derived_event", "derived_events"):
            yield event

    def _read_optional(
        self, name: str, artifact: ArtifactName, issues: list[Issue]
    ) -> JsonObject | None:
        if not is_there(self.run_dir / name):
            return None
        return self._read_json(name, artifact, issues)

    def _read_json(self, name: str, artifact: ArtifactName, issues: list[Issue]) -> JsonObject:
        path = self.run_dir / name
        payload = read_json_object(path)
        issues += find_schema_issues(artifact, payload, artifact, str(path))
        return payload


class _Walk:
    """One pass over the traces of a bundle, gathering what is wrong until it is too much."""

    def __init__(self, reader: RunBundleReader, most_issues: int = MAX_ISSUES) -> None:
        self._reader = reader
        self._most_issues = most_issues
        self._checks = BundleChecks(reader.manifest, str(reader.run_dir / MANIFEST_FILE))
        self._schema_issues: list[Issue] = []

    def raw_events(self) -> Iterator[JsonObject]:
        """Give the events up to the first fault; the others are only checked."""
        for event, place in self.read_lines(RAW_TRACE_FILE, "raw_event", "raw_events"):
            self._checks.add_raw_event(event, place)
            if not (self._checks.issues or self._schema_issues):
                yield event
        self._checks.add_layout(self._reader.layout, str(self._reader.run_dir / LAYOUT_FILE))

    def derived_events(self) -> Iterator[JsonObject]:
        """Give the derived events that satisfy their schema; after all raw events."""
        for event, place in self.read_lines(DERIVED_FILE, "derived_event", "derived_events"):
            self._checks.add_derived_event(event, place)
            yield event

    def finish(self) -> None:
        """Check the remaining files and raise what was found."""
        reader = self._reader
        if reader.motif_ledger is not None:
            place = str(reader.run_dir / MOTIF_LEDGER_FILE)
            self._checks.add_support("motif_ledger", reader.motif_ledger, place)
        if reader.contingency is not None:
            place = str(reader.run_dir / CONTINGENCY_FILE)
            self._checks.add_support("contingency", reader.contingency, place)
        self.raise_issues()

    def raise_issues(self) -> None:
        """Raise what was found so far: broken schemas first, contradictions otherwise."""
        if self._schema_issues:
            raise schema_error(self._schema_issues)
        if self._checks.issues:
            raise semantic_error(sort_issues(self._checks.issues))

    def read_lines(
        self, name: str, artifact: ArtifactName, location: str
    ) -> Iterator[tuple[JsonObject, str]]:
        """Give each payload that satisfies its schema, with `<file>:<line>`."""
        path = self._reader.run_dir / name
        version = payload_version("manifest", self._reader.manifest)
        try:
            with open_regular_file(path) as stream:
                for number, (payload, place) in enumerate(iter_ndjson(stream, path)):
                    issues = find_schema_issues(
                        artifact, payload, f"{location}[{number}]", place, version
                    )
                    if issues or artifact == "derived_event":
                        check_line_values(payload, place)
                    self._schema_issues += issues
                    if not issues:
                        yield payload, place
                    if len(self._schema_issues) + len(self._checks.issues) >= self._most_issues:
                        self.raise_issues()
        except OSError as error:
            raise unreadable_error(path, error) from error


def _check_run_id(run_id: str, path: Path) -> None:
    try:
        check_run_id(run_id)
    except UsageError as error:
        issue = Issue("manifest", "run_id_not_a_path", str(error), str(path))
        raise BundleError("run bundle cannot be read: run_id_not_a_path", [issue]) from error
