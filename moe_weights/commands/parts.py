"""Finished work on disk: what a killed run leaves and the next one takes.

A part holds the rows of one batch of units, written atomically under a fingerprint of everything
the rows depend on: the shards, the effective config, the packages and this code. Parts of another
fingerprint, parts of other units and damaged parts are never used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import moe_weights
from moe_weights.atomic_files import JsonValue, write_text_atomic
from moe_weights.checkpoint.headers import FileIdentity
from moe_weights.commands.work import UnitResult
from moe_weights.errors import OutputError
from moe_weights.extract.work_unit import TARGET_UNIT_BYTES, WorkUnit

_MAX_UNITS_PER_BATCH = 256
_NUMERIC_PACKAGES = ("numpy", "ml-dtypes", "mlx")


def batch_units(units: Sequence[WorkUnit]) -> list[tuple[WorkUnit, ...]]:
    """Cut units into batches of about `TARGET_UNIT_BYTES`, in order; one batch is one part."""
    batches: list[tuple[WorkUnit, ...]] = []
    members: list[WorkUnit] = []
    nbytes = 0
    for unit in units:
        if members and (
            nbytes + unit.nbytes > TARGET_UNIT_BYTES or len(members) == _MAX_UNITS_PER_BATCH
        ):
            batches.append(tuple(members))
            members, nbytes = [], 0
        members.append(unit)
        nbytes += unit.nbytes
    if members:
        batches.append(tuple(members))
    return batches


def run_fingerprint(
    identities: Iterable[FileIdentity], effective_config: dict[str, JsonValue]
) -> str:
    """Return a digest of everything that the rows of a run depend on.

    Args:
        identities: Path, size, mtime and header hash of each scanned shard.
        effective_config: The config with all defaults and overrides.
    """
    content = {
        "files": [
            [identity.file, identity.size, identity.mtime_ns, identity.header_sha256]
            for identity in identities
        ],
        # Insertion order stays: the order of proj_aliases is part of the config's meaning.
        "config": effective_config,
        "packages": {name: _version(name) for name in _NUMERIC_PACKAGES},
        "code": _code_digest(),
    }
    return _sha256(json.dumps(content))[:32]


class PartStore:
    """The parts of one fingerprint, numbered by batch."""

    def __init__(self, parts_path: Path, fingerprint: str) -> None:
        """Name the folder; nothing is read yet.

        Args:
            parts_path: Folder of all parts of the run.
            fingerprint: See `run_fingerprint`.
        """
        self._parts_path = parts_path
        self._folder = parts_path / fingerprint

    def discard_others(self) -> int:
        """Remove parts of other fingerprints; return how many fingerprints that were."""
        if not self._parts_path.is_dir():
            return 0
        others = [path for path in self._parts_path.iterdir() if path != self._folder]
        for path in others:
            _remove_tree(path)
        return len(others)

    def load(self, number: int, batch: Sequence[WorkUnit]) -> UnitResult | None:
        """Return a committed part; None when there is none that is whole and of this batch.

        Args:
            number: Place of the batch in the plan.
            batch: Its units; a part of other units (another plan) is not taken.
        """
        try:
            part = json.loads(self._path(number).read_text(encoding="utf-8"))
            content = part["content"]
            if part["sha256"] != _sha256(json.dumps(content)):
                return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            # Missing, or damaged (a file system that lost writes): measured again, then replaced.
            return None
        if content.pop("units") != _units_digest(batch):
            return None
        return UnitResult(**content)

    def commit(self, number: int, batch: Sequence[WorkUnit], result: UnitResult) -> None:
        """Write a part, whole or not at all.

        Args:
            number: Place of the batch in the plan.
            batch: Its units.
            result: Their rows.

        Raises:
            OutputError: it cannot be written.
        """
        content = json.dumps(
            {
                "units": _units_digest(batch),
                "matrix_rows": result.matrix_rows,
                "quant_rows": result.quant_rows,
                "digests": result.digests,
                "constant": result.constant,
            },
            allow_nan=False,
        )
        # Dumping what was loaded from JSON gives the same text, so the digest can be checked.
        part = f'{{"sha256": "{_sha256(content)}", "content": {content}}}\n'
        write_text_atomic(self._path(number), part)

    def discard(self) -> None:
        """Remove all parts, after their rows stand in the tables."""
        if self._parts_path.is_dir():
            _remove_tree(self._parts_path)

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:07d}.json"


def _remove_tree(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}; remove it by hand") from error


def _units_digest(batch: Sequence[WorkUnit]) -> str:
    # The plan also depends on config.json and the index, which the fingerprint does not cover.
    return _sha256(repr(tuple(batch)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _code_digest() -> str:
    digest = hashlib.sha256()
    root = Path(moe_weights.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
