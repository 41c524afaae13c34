"""What do all scanned files of a checkpoint contain, judged by their headers?

Also names what a later run compares to tell whether a file is still the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from moe_weights.checkpoint.file_access import open_descriptor, stat_descriptor
from moe_weights.checkpoint.locate import CheckpointFiles
from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.checkpoint.safetensors_file import (
    RawHeader,
    SafetensorsHeader,
    parse_header,
    read_raw_header,
)
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.zip_member import read_npy_members
from moe_weights.errors import CheckpointError
from moe_weights.findings import Finding, FindingKind, list_some

_MAX_FILES_SHOWN = 10
_N_THREADS = 8  # hides the latency of network file systems; parsing itself is serial


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeaders:
    """Every tensor of the scanned files.

    Attributes:
        tensors: In scan order: by file, then by place within the file.
        metadata_by_file: `__metadata__` of each file; empty for `.npz`.
        shadowed: Copies of a repeated name, as (file, tensor), that are reported but not measured;
            only in index mode, where the index says which copy counts.
        findings: Repeated names.
        identities: What each scanned file was when its header was read, in scan order.
    """

    tensors: tuple[TensorHeader, ...]
    metadata_by_file: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    shadowed: frozenset[tuple[str, str]] = frozenset()
    findings: tuple[Finding, ...] = ()
    identities: tuple[FileIdentity, ...] = ()

    def without_shadowed(self, tensors: Sequence[TensorHeader]) -> Sequence[TensorHeader]:
        """Return those of `tensors` that are measured, in order."""
        if not self.shadowed:
            return tensors
        return [tensor for tensor in tensors if (tensor.file, tensor.name) not in self.shadowed]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FileIdentity:
    """What makes a file count as unchanged.

    Attributes:
        file: Name relative to the model directory.
        size: Length, bytes.
        mtime_ns: Time of the last change, nanoseconds.
        header_sha256: SHA-256 of the safetensors header, or of the `.npz` directory (names, places,
            sizes, CRCs), in hexadecimal.
    """

    file: str
    size: int
    mtime_ns: int
    header_sha256: str


def read_headers(files: CheckpointFiles) -> CheckpointHeaders:
    """Read the headers of every scanned file; no tensor value is read.

    Raises:
        CheckpointError: files cannot be read or are malformed; one error names all of them.
    """
    with ThreadPoolExecutor(max_workers=_N_THREADS) as pool:
        read = pool.map(lambda file: _read_or_error(files.root, file), files.files)
        # Threads that parse at once would only wait for each other.
        outcomes = [
            _parse_or_error(found, file) for found, file in zip(read, files.files, strict=True)
        ]
    errors = [outcome for outcome in outcomes if isinstance(outcome, CheckpointError)]
    if errors:
        raise _joined_error(errors) from errors[0]
    found = [outcome for outcome in outcomes if not isinstance(outcome, CheckpointError)]
    headers = [header for _identity, header in found]
    tensors = [tensor for header in headers for tensor in header.tensors]
    metadata = (header.metadata for header in headers)
    copies = _find_copies(tensors)
    return CheckpointHeaders(
        tensors=tuple(tensors),
        metadata_by_file=dict(zip(files.files, metadata, strict=True)),
        shadowed=frozenset(_find_shadowed(copies, files)),
        findings=_copy_findings(copies),
        identities=tuple(identity for identity, _header in found),
    )


def file_identity(root: Path, file: str) -> FileIdentity:
    """Return what identifies a file's present content.

    Args:
        root: Model directory.
        file: Name relative to it.

    Raises:
        CheckpointError: the file cannot be read or its header is not there.
    """
    return _identify(root, file)[0]


def _identify(root: Path, file: str) -> tuple[FileIdentity, RawHeader | None]:
    """Return what identifies a file, and the header that was read for it if it is no archive."""
    raw: RawHeader | None = None
    digest = hashlib.sha256()
    with open_descriptor(root / file, file) as descriptor:
        # First of all: what changes from now on makes another identity.
        status = stat_descriptor(descriptor, file)
        if _is_npz(file):
            for member in read_npy_members(descriptor, file):
                digest.update(f"{member!r}\n".encode())
        else:
            raw = read_raw_header(descriptor, file)
            digest.update(raw.encoded)
    identity = FileIdentity(
        file=file,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        header_sha256=digest.hexdigest(),
    )
    return identity, raw


def _is_npz(file: str) -> bool:
    return PurePosixPath(file).suffix == ".npz"


def _read_or_error(
    root: Path, file: str
) -> tuple[FileIdentity, RawHeader | SafetensorsHeader] | CheckpointError:
    try:
        identity, raw = _identify(root, file)
        if raw is not None:
            return identity, raw
        return identity, SafetensorsHeader(tensors=read_npz_headers(root / file, file), metadata={})
    except CheckpointError as error:
        return error


def _parse_or_error(
    found: tuple[FileIdentity, RawHeader | SafetensorsHeader] | CheckpointError, file: str
) -> tuple[FileIdentity, SafetensorsHeader] | CheckpointError:
    if isinstance(found, CheckpointError):
        return found
    identity, raw = found
    if not isinstance(raw, RawHeader):
        return identity, raw
    try:
        return identity, parse_header(raw, file)
    except CheckpointError as error:
        return error


def _joined_error(errors: list[CheckpointError]) -> CheckpointError:
    if len(errors) == 1:
        return errors[0]
    lines = [f"{len(errors)} files cannot be read", *map(str, errors[:_MAX_FILES_SHOWN])]
    if len(errors) > _MAX_FILES_SHOWN:
        lines.append(f"... and {len(errors) - _MAX_FILES_SHOWN} more files")
    return CheckpointError("\n".join(lines))


def _find_copies(tensors: Sequence[TensorHeader]) -> dict[str, list[str]]:
    if len({tensor.name for tensor in tensors}) == len(tensors):
        return {}
    files_of: dict[str, list[str]] = {}
    for tensor in tensors:
        files_of.setdefault(tensor.name, []).append(tensor.file)
    return {name: files for name, files in sorted(files_of.items()) if len(files) > 1}


def _find_shadowed(
    copies: Mapping[str, list[str]], files: CheckpointFiles
) -> Iterable[tuple[str, str]]:
    index = files.index.index
    if files.scan_mode != "index" or index is None:
        return
    for name, holders in copies.items():
        named = index.weight_map.get(name)
        measured = named if named in holders else holders[0]
        yield from ((file, name) for file in holders if file != measured)


def _copy_findings(copies: Mapping[str, list[str]]) -> tuple[Finding, ...]:
    if not copies:
        return ()
    described = [f"{name} ({list_some(files, _MAX_FILES_SHOWN)})" for name, files in copies.items()]
    return (
        Finding(
            kind=FindingKind.SCAN,
            message=f"[scan] duplicate tensor name: {list_some(described)}",
            tensor=next(iter(copies)) if len(copies) == 1 else "",
            count=len(copies),
            hint="scan one copy: point model_path at its folder or give the folder an index",
        ),
    )
