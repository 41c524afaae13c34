"""Where does a bundle grow, and how does that folder go away again?"""

from __future__ import annotations

import os
from pathlib import Path

from moe_weights.atomic_files import remove_file, remove_temporary_siblings
from moe_weights.errors import MoeWeightsError, OutputError, UsageError
from moe_weights.routing.artifacts import (
    CONTINGENCY_FILE,
    DERIVED_FILE,
    LAYOUT_FILE,
    MANIFEST_FILE,
    MOTIF_LEDGER_FILE,
    RAW_TRACE_FILE,
)
from moe_weights.routing.run_ids import UNFINISHED_PREFIX, bundle_path
from moe_weights.routing.trace_file import TraceFile

OPTIONAL_FILES = (LAYOUT_FILE, DERIVED_FILE, MOTIF_LEDGER_FILE, CONTINGENCY_FILE)


def working_path(run_dir: Path) -> Path:
    """Return the folder beside a bundle's place in which the bundle grows."""
    return run_dir.with_name(f"{UNFINISHED_PREFIX}working-{run_dir.name}")


def refuse_unfinished(folder: Path) -> None:
    """Refuse to start where an unfinished run lies.

    Raises:
        UsageError: naming it, and what can be done with it.
    """
    if os.path.lexists(folder / MANIFEST_FILE):
        raise UsageError(
            f"{folder} holds an unfinished run; go on with it (resume_working_bundle), or keep or "
            "remove it: moe-weights capture --unfinished salvage, or discard"
        )


def discard_working_bundle(root_dir: str | os.PathLike[str], run_id: str) -> bool:
    """Remove an unfinished run with all its events, however damaged the files are.

    Args:
        root_dir: As given to `create_working_bundle`.
        run_id: As in its manifest.

    Returns:
        Whether there was one.

    Raises:
        UsageError: another process is writing it, or the run id is no plain path.
        OutputError: it cannot be removed, its trace is no file, or there is something else in its
            folder; then nothing is removed.
    """
    folder = working_path(bundle_path(Path(root_dir), run_id))
    if not os.path.lexists(folder):
        return False
    try:
        trace = TraceFile(folder / RAW_TRACE_FILE, durable=False)
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        remove_working_folder(folder)
    finally:
        trace.close()
    return True


def remove_working_folder(folder: Path) -> None:
    """Remove a working folder; its trace is locked by the caller.

    Raises:
        OutputError: it cannot be removed, or there is something else in it; then nothing is.
    """
    # Without its manifest, what is left counts as a start that came to nothing.
    names = (*OPTIONAL_FILES, MANIFEST_FILE, RAW_TRACE_FILE)
    try:
        remove_temporary_siblings(folder)
        foreign = sorted({path.name for path in folder.iterdir()} - set(names))
        if foreign:
            raise OutputError(
                f"{folder / foreign[0]} is no part of a bundle; move it away and run the same "
                "command again; nothing was removed"
            )
        for name in names:
            remove_file(folder / name)
        folder.rmdir()
    except OSError as error:
        if isinstance(error, MoeWeightsError):
            raise
        raise not_writable(folder, error) from error


def not_writable(folder: Path, error: OSError) -> OutputError:
    """Return the refusal of a folder that cannot be written to."""
    cause = error.strerror or str(error)
    return OutputError(f"cannot write {folder}: {cause}; check the folder of bundles")
