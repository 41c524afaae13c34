"""The one way from a tensor header to the tensor's bytes.

Byte ranges of safetensors files and of stored `.npz` members are read in place; a deflated member
is inflated once and the last one is kept. The CRC of an `.npz` member is verified before any of its
bytes is given out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from moe_weights.checkpoint.file_access import open_descriptor, read_range, stat_descriptor
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.zip_member import ZipMember, iter_member_chunks, read_npy_members
from moe_weights.errors import CheckpointError

_MAX_DIRECTORIES = 8


class _ArchiveKey(NamedTuple):
    path: str
    mtime_ns: int
    nbytes: int


class _MemberKey(NamedTuple):
    archive: _ArchiveKey
    member: str


def read_tensor_bytes(
    root: Path, header: TensorHeader, start: int, stop: int
) -> bytes | memoryview:
    """Read bytes `start` to `stop` of a tensor's stored values. Safe to call from many threads.

    Args:
        root: Model directory.
        header: The tensor; from the headers of the same checkpoint.
        start: First byte, from the tensor's first one.
        stop: Byte after the last one; at most `header.nbytes`.

    Returns:
        Exactly `stop - start` bytes, not to be modified.

    Raises:
        CheckpointError: the file is gone, changed or damaged.
        ValueError: the range does not lie within the tensor.
    """
    if not 0 <= start <= stop <= header.nbytes:
        raise ValueError(
            f'bytes {start} to {stop} do not lie within tensor "{header.name}" '
            f"({header.nbytes} bytes)"
        )
    path = root / header.file
    with open_descriptor(path, header.file) as descriptor:
        if header.member:
            return _NPZ_READER.read(path, descriptor, header, start, stop)
        return read_range(descriptor, header.offset + start, stop - start, header.file)


class _NpzReader:
    """Verified members of `.npz` archives; one per process."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inflating = threading.Lock()
        self._directories: OrderedDict[_ArchiveKey, dict[str, ZipMember]] = OrderedDict()
        self._member_locks: dict[_MemberKey, threading.Lock] = {}
        self._verified: set[_MemberKey] = set()
        self._inflated: tuple[_MemberKey, memoryview] | None = None

    def read(
        self, path: Path, descriptor: int, header: TensorHeader, start: int, stop: int
    ) -> bytes | memoryview:
        """Read a range of a member's values after its CRC was verified."""
        status = stat_descriptor(descriptor, header.file)
        archive = _ArchiveKey(str(path), status.st_mtime_ns, status.st_size)
        member = self._find_member(archive, descriptor, header)
        key = _MemberKey(archive, member.name)
        first, last = header.offset + start, header.offset + stop
        if member.is_deflated:
            return self._inflate(key, descriptor, member, header.file)[first:last]
        self._verify(key, descriptor, member, header.file)
        return read_range(descriptor, member.data_offset + first, last - first, header.file)

    def _find_member(
        self, archive: _ArchiveKey, descriptor: int, header: TensorHeader
    ) -> ZipMember:
        with self._guard:
            directory = self._directories.get(archive)
            if directory is None:
                members = read_npy_members(descriptor, header.file)
                directory = {member.name: member for member in members}
                self._directories[archive] = directory
                if len(self._directories) > _MAX_DIRECTORIES:
                    self._directories.popitem(last=False)
        member = directory.get(header.member)
        if member is None or member.nbytes != header.offset + header.nbytes:
            raise CheckpointError(
                f'{header.file}: member "{header.member}" is not what its header said; the file '
                "changed while it was read: let its writer finish, then run again"
            )
        return member

    def _verify(self, key: _MemberKey, descriptor: int, member: ZipMember, file: str) -> None:
        with self._guard:
            lock = self._member_locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._verified:
                for _chunk in iter_member_chunks(descriptor, member, file):
                    pass
                self._verified.add(key)

    def _inflate(
        self, key: _MemberKey, descriptor: int, member: ZipMember, file: str
    ) -> memoryview:
        with self._inflating:
            if self._inflated is not None and self._inflated[0] == key:
                return self._inflated[1]
            self._inflated = None  # at most one inflated member in memory
            values = bytearray()
            for chunk in iter_member_chunks(descriptor, member, file):
                values += chunk
            view = memoryview(values).toreadonly()
            self._inflated = (key, view)
            return view


_NPZ_READER = _NpzReader()
