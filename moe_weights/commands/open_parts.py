"""Which finished parts of an earlier run may be taken: those of the same fingerprint.

And is the checkpoint, while it is measured, still the one that the fingerprint is of?
"""

from __future__ import annotations

from pathlib import Path

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.headers import FileIdentity, file_identity
from moe_weights.commands.console import Reporter
from moe_weights.commands.parts import Fingerprint, PartStore
from moe_weights.commands.run_settings import Simulation, described_by
from moe_weights.commands.survey import Survey
from moe_weights.errors import CheckpointError
from moe_weights.run_directory import RunDirectory


def refuse_changed_shards(survey: Survey) -> None:
    """Hold the scanned shards against what they were when their headers were read.

    Raises:
        CheckpointError: one has changed, or cannot be read any more.
    """
    root = survey.files.root
    if any(file_identity(root, known.file) != known for known in survey.identities):
        raise _changed()


def _refuse_touched_shards(survey: Survey) -> None:
    """Look for a change without opening a file; see `refuse_changed_shards`."""
    if any(_is_touched(survey.files.root, known) for known in survey.identities):
        raise _changed()


def _is_touched(root: Path, known: FileIdentity) -> bool:
    try:
        status = (root / known.file).stat()
    except OSError:
        return True
    return (status.st_size, status.st_mtime_ns) != (known.size, known.mtime_ns)


def _changed() -> CheckpointError:
    return CheckpointError(
        "the checkpoint changed while it was read; let its writer finish, then run again: "
        "everything will be measured anew"
    )


def open_parts(
    run: RunDirectory,
    survey: Survey,
    effective: dict[str, JsonValue],
    simulation: Simulation,
    reporter: Reporter,
    *,
    restart: bool,
) -> PartStore:
    """Open the finished parts of exactly this run, and discard all others.

    Args:
        run: The run.
        survey: What will be measured.
        effective: The config with all defaults and overrides.
        simulation: Schemes and what quantises them.
        reporter: Told what was discarded and why.
        restart: Discard this run's own parts as well.

    Raises:
        OutputError: parts cannot be removed.
    """
    # What the config led to here (is MLX importable? are the kernels equal?) is no part of the
    # config, but the numbers depend on it.
    fingerprint = Fingerprint.of(
        survey.identities,
        described_by(survey),
        {**effective, "simulated": simulation.backends.names},
    )
    store = PartStore(run.parts_path, fingerprint, lambda: _refuse_touched_shards(survey))
    if restart:
        store.discard()
        reporter.say("collect", "restart: finished parts of earlier runs were discarded")
        return store
    changes = store.discard_others()
    if changes is not None:
        reporter.say(
            "collect",
            f"parts of an unfinished run were discarded: {', '.join(changes)} changed",
        )
    return store
