"""Finished work on disk: what a killed run leaves and the next one takes.

A part holds the numbers of some finished batches, written atomically in a folder that bears the
fingerprint of everything they depend on: the shards, what describes them, the effective config, the
packages and this code. Damaged parts, and those of another fingerprint, are never used.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import moe_weights
from moe_weights.atomic_files import JsonValue, write_text_atomic
from moe_weights.checkpoint.headers import FileIdentity
from moe_weights.commands.work import COUNTS, UnitResult
from moe_weights.errors import OutputError
from moe_weights.extract.work_unit import WorkUnit

# One batch is what a worker is given at a time: long enough for the way there and back, short
# enough to be lost.
_BATCH_NBYTES = 64 * 2**20
_MAX_UNITS_PER_BATCH = 256
# A kill loses about this much work, and what the workers had begun.
_SECONDS_BETWEEN_PARTS = 1.0
_NUMERIC_PACKAGES = ("numpy", "ml-dtypes", "numba", "mlx")
_ABOUT = "about.json"
_PART_NAMES = "part-*.json"


def batch_units(units: Sequence[WorkUnit]) -> list[tuple[WorkUnit, ...]]:
    """Cut units into batches of about 64 MiB, in order."""
    batches: list[tuple[WorkUnit, ...]] = []
    members: list[WorkUnit] = []
    nbytes = 0
    for unit in units:
        if members and (
            nbytes + unit.nbytes > _BATCH_NBYTES or len(members) == _MAX_UNITS_PER_BATCH
        ):
            batches.append(tuple(members))
            members, nbytes = [], 0
        members.append(unit)
        nbytes += unit.nbytes
    if members:
        batches.append(tuple(members))
    return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Digests of everything that the numbers of a run depend on.

    Attributes:
        checkpoint: The shards, and the files that say what they mean.
        config: The effective config and what it led to on this machine.
        code: This package and the packages it computes with.
    """

    checkpoint: str
    config: str
    code: str

    @classmethod
    def of(
        cls, identities: Iterable[FileIdentity], described_by: JsonValue, config: JsonValue
    ) -> Fingerprint:
        """Compute the digests.

        Args:
            identities: Path, size, mtime and header hash of each scanned shard.
            described_by: Content of config.json, quantisation block and index.
            config: The config with all defaults and overrides, and what was made of it.
        """
        files = [
            [identity.file, identity.size, identity.mtime_ns, identity.header_sha256]
            for identity in identities
        ]
        packages = {name: _version(name) for name in _NUMERIC_PACKAGES}
        return cls(
            # Insertion order stays: the order of proj_aliases is part of the config's meaning.
            checkpoint=_sha256(json.dumps([files, described_by])),
            config=_sha256(json.dumps(config)),
            code=_sha256(json.dumps([packages, code_digest()])),
        )

    @property
    def folder(self) -> str:
        """Name of the folder of its parts."""
        return _sha256(self.checkpoint + self.config + self.code)[:32]

    def changes_since(self, other: dict[str, str]) -> list[str]:
        """Return which digests differ from those that an earlier run wrote down."""
        own = self.as_json()
        return [name for name in own if own[name] != other.get(name)]

    def as_json(self) -> dict[str, str]:
        """Return the digests by name."""
        return {"checkpoint": self.checkpoint, "config": self.config, "code": self.code}


class PartStore:
    """The finished batches of one fingerprint, by their number in the plan."""

    def __init__(
        self,
        parts_path: Path,
        fingerprint: Fingerprint,
        refuse_changes: Callable[[], None] = lambda: None,
    ) -> None:
        """Name the folder; nothing is read yet.

        Args:
            parts_path: Folder of all parts of the run.
            fingerprint: Of this run.
            refuse_changes: Called before a part is written; raises where the shards are no longer
                those of the fingerprint.
        """
        self._parts_path = parts_path
        self._fingerprint = fingerprint
        self._refuse_changes = refuse_changes
        self._folder = parts_path / fingerprint.folder
        self._pending: dict[int, UnitResult] = {}
        self._written_at = time.monotonic()

    def discard_others(self) -> list[str] | None:
        """Remove parts of other fingerprints.

        Returns:
            What has changed since they were made; None when there were none.
        """
        if not self._parts_path.is_dir():
            return None
        changes: list[str] | None = None
        for path in sorted(self._parts_path.iterdir()):
            if path == self._folder:
                continue
            try:
                about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
                found = self._fingerprint.changes_since(about)
            except (OSError, ValueError, TypeError, AttributeError):
                found = ["checkpoint, config or code"]
            changes = list(dict.fromkeys([*(changes or []), *found]))
            _remove_tree(path)
        return changes

    def load(self) -> dict[int, UnitResult]:
        """Return the finished batches that are whole; damaged parts are measured again."""
        found: dict[int, UnitResult] = {}
        for path in sorted(self._folder.glob(_PART_NAMES)):
            try:
                part = json.loads(path.read_text(encoding="utf-8"))
                content = part["content"]
                if part["sha256"] != _sha256(json.dumps(content)):
                    continue
                found |= {int(number): _from_json(batch) for number, batch in content.items()}
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue  # a file system that lost writes
        return found

    def commit(self, number: int, result: UnitResult) -> None:
        """Keep a finished batch; it is on disk after a second, or after `flush`.

        Args:
            number: Place of the batch in the plan.
            result: Its numbers.

        Raises:
            CheckpointError: the checkpoint has changed meanwhile.
            OutputError: a part cannot be written.
        """
        self._pending[number] = result
        if time.monotonic() - self._written_at >= _SECONDS_BETWEEN_PARTS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet, whole or not at all.

        Raises:
            CheckpointError: the checkpoint has changed meanwhile; nothing more is kept.
            OutputError: it cannot be written.
        """
        if self._pending:
            self._refuse_changes()
            if not (self._folder / _ABOUT).exists():
                write_text_atomic(
                    self._folder / _ABOUT, json.dumps(self._fingerprint.as_json()) + "\n"
                )
            batches = {str(number): _to_json(batch) for number, batch in self._pending.items()}
            content = json.dumps(batches, allow_nan=False)
            # Dumping what was loaded from JSON gives the same text, so the digest can be checked.
            part = f'{{"sha256": "{_sha256(content)}", "content": {content}}}\n'
            # Numbers are never written twice within a run, so the first one names the part.
            write_text_atomic(self._folder / f"part-{min(self._pending):07d}.json", part)
            self._pending.clear()
        self._written_at = time.monotonic()

    @property
    def kept_text(self) -> str:
        """What a person is told about the parts when a run ends early."""
        if not any(self._folder.glob(_PART_NAMES)):
            return "nothing that was measured could be kept"
        return "what was measured is kept below cache/parts, and the same command goes on from it"

    def discard(self) -> None:
        """Remove all parts, of every fingerprint."""
        self._pending.clear()
        if self._parts_path.is_dir():
            _remove_tree(self._parts_path)


def code_digest() -> str:
    """Return a digest of this package's sources; presets are among them."""
    digest = hashlib.sha256()
    root = Path(moe_weights.__file__).parent
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.json")]):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _to_json(result: UnitResult) -> JsonValue:
    return {
        "measured": _array_to_json(result.measured),
        "simulated": _array_to_json(result.simulated),
        "errors": result.errors,
        "counts": [[int(count) for count in counts] for counts in result.counts],
        "fingerprints": result.fingerprints,
        "constant": result.constant,
    }


def _from_json(content: dict[str, list[str]]) -> UnitResult:
    return UnitResult(
        measured=_array_from_json(content["measured"]),
        simulated=_array_from_json(content["simulated"]),
        errors=list(content["errors"]),
        counts=np.array(content["counts"], dtype=np.int64).reshape(-1, len(COUNTS)),
        fingerprints=list(content["fingerprints"]),
        constant=[bool(is_constant) for is_constant in content["constant"]],
    )


def _array_to_json(array: NDArray[np.float64]) -> JsonValue:
    return [list(array.shape), base64.b64encode(array.astype("<f8").tobytes()).decode("ascii")]


def _array_from_json(content: Sequence[object]) -> NDArray[np.float64]:
    shape, text = content
    values = np.frombuffer(base64.b64decode(str(text)), dtype="<f8")
    return values.reshape(tuple(shape)).astype(np.float64)  # type: ignore[arg-type]


def _remove_tree(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}; remove it by hand") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
