"""The one way from a tensor header to the tensor's bytes.

Byte ranges of safetensors files and of stored `.npz` members are read in place. A deflated member
is inflated once into an unnamed file, of which a few are kept, so that memory stays flat. The CRC
of an `.npz` member is verified before any of its bytes is given out.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from moe_weights.checkpoint.file_access import (
    open_descriptor,
    read_range,
    read_range_into,
    stat_descriptor,
)
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.zip_member import ZipMember, iter_member_chunks, read_npy_members
from moe_weights.errors import CheckpointError, OutputError

_MAX_DIRECTORIES = 8
_MAX_INFLATED = 4


class _ArchiveKey(NamedTuple):
    path: str
    mtime_ns: int
    nbytes: int


class _MemberKey(NamedTuple):
    archive: _ArchiveKey
    member: str


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """An open tensor; see `open_tensor`."""

    _header: TensorHeader
    _descriptor: int
    _offset: int

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of the stored values; see `read_tensor_bytes`."""
        self._check(start, stop)
        return read_range(self._descriptor, self._offset + start, stop - start, self._header.file)

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target`, bytes, with the stored values from byte `start` on.

        Raises:
            CheckpointError: the file is gone, changed or damaged.
            ValueError: the range does not lie within the tensor.
        """
        self._check(start, start + target.nbytes)
        read_range_into(self._descriptor, self._offset + start, target, self._header.file)

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._header.nbytes:
            raise ValueError(
                f'bytes {start} to {stop} do not lie within tensor "{self._header.name}" '
                f"({self._header.nbytes} bytes)"
            )


@contextlib.contextmanager
def open_tensor(
    root: Path, header: TensorHeader, scratch_folder: Path | None = None
) -> Iterator[TensorBytes]:
    """Open a tensor for reads of its stored values. Safe to call from many threads.

    Args:
        root: Model directory.
        header: The tensor; from the headers of the same checkpoint.
        scratch_folder: Where deflated members are inflated to; None takes the system's folder for
            temporary files.

    Raises:
        CheckpointError: the file is gone, changed or damaged.
        OutputError: there is no room for an inflated member.
    """
    path = _path_of(root, header.file)
    with open_descriptor(path, header.file) as descriptor:
        if not header.member:
            yield TensorBytes(header, descriptor, header.offset)
            return
        member, inflated = _NPZ_MEMBERS.open(path, descriptor, header, scratch_folder)
        if inflated is not None:  # kept open by this reference, even if it is dropped meanwhile
            yield TensorBytes(header, inflated.stream.fileno(), header.offset)
        else:
            yield TensorBytes(header, descriptor, member.data_offset + header.offset)


@lru_cache(maxsize=64)
def _path_of(root: Path, file: str) -> Path:
    """Return the same path each time: joining one, and making its text, takes as long as a read."""
    return root / file


def read_tensor_bytes(root: Path, header: TensorHeader, start: int, stop: int) -> bytes:
    """Read bytes `start` to `stop` of a tensor's stored values. Safe to call from many threads.

    Args:
        root: Model directory.
        header: The tensor; from the headers of the same checkpoint.
        start: First byte, from the tensor's first one.
        stop: Byte after the last one; at most `header.nbytes`.

    Returns:
        Exactly `stop - start` bytes.

    Raises:
        CheckpointError: the file is gone, changed or damaged.
        ValueError: the range does not lie within the tensor.
    """
    with open_tensor(root, header) as stored:
        return stored.read(start, stop)


class _Inflated:
    """An unnamed file that closes when nobody refers to it any more."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def __del__(self) -> None:
        self.stream.close()


class _NpzMembers:
    """Verified members of `.npz` archives; one per process."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._directories: OrderedDict[_ArchiveKey, dict[str, ZipMember]] = OrderedDict()
        self._member_locks: dict[_MemberKey, threading.Lock] = {}
        self._verified: set[_MemberKey] = set()
        self._inflated: OrderedDict[_MemberKey, _Inflated] = OrderedDict()

    def open(
        self, path: Path, descriptor: int, header: TensorHeader, scratch_folder: Path | None
    ) -> tuple[ZipMember, _Inflated | None]:
        """Return a member whose CRC was verified, and its inflated bytes if it is deflated."""
        status = stat_descriptor(descriptor, header.file)
        archive = _ArchiveKey(str(path), status.st_mtime_ns, status.st_size)
        member = self._find_member(archive, descriptor, header)
        key = _MemberKey(archive, member.name)
        with self._guard:
            lock = self._member_locks.setdefault(key, threading.Lock())
        with lock:
            if member.is_deflated:
                return member, self._inflate(key, descriptor, member, header.file, scratch_folder)
            if key not in self._verified:
                for _chunk in iter_member_chunks(descriptor, member, header.file):
                    pass
                self._verified.add(key)
        return member, None

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

    def _inflate(
        self,
        key: _MemberKey,
        descriptor: int,
        member: ZipMember,
        file: str,
        scratch_folder: Path | None,
    ) -> _Inflated:
        with self._guard:
            kept = self._inflated.get(key)
            if kept is not None:
                self._inflated.move_to_end(key)
                return kept
        try:
            inflated = _Inflated(tempfile.TemporaryFile(dir=scratch_folder))  # noqa: SIM115 # kept open
            for chunk in iter_member_chunks(descriptor, member, file):
                inflated.stream.write(chunk)
            inflated.stream.flush()
        except OSError as error:
            raise OutputError(
                f'cannot inflate member "{member.name}" of {file} ({member.nbytes} bytes) into '
                f"{scratch_folder or tempfile.gettempdir()}: {error.strerror or error}; free some "
                "space there, or store the file uncompressed with numpy.savez"
            ) from error
        with self._guard:
            self._inflated[key] = inflated
            if len(self._inflated) > _MAX_INFLATED:
                self._inflated.popitem(last=False)  # closed when its last reader is done
        return inflated


_NPZ_MEMBERS = _NpzMembers()
