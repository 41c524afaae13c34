"""Which finished parts of an earlier run may be taken: those of the same fingerprint."""

from __future__ import annotations

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.headers import FileIdentity, file_identity
from moe_weights.commands.console import Reporter
from moe_weights.commands.parts import Fingerprint, PartStore
from moe_weights.commands.run_settings import Simulation, described_by
from moe_weights.commands.survey import Survey
from moe_weights.run_directory import RunDirectory


def shard_identities(survey: Survey) -> list[FileIdentity]:
    """Return what tells whether the scanned shards are still the same."""
    return [file_identity(survey.files.root, file) for file in survey.files.files]


def open_parts(
    run: RunDirectory,
    survey: Survey,
    identities: list[FileIdentity],
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
        identities: Of the scanned shards.
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
        identities,
        described_by(survey),
        {**effective, "simulated": simulation.backends.names},
    )
    store = PartStore(run.parts_path, fingerprint)
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
