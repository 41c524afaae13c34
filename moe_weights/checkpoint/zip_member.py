"""Where do the members of a zip archive lie, and what are their bytes?

`zipfile` reads the directory; the bytes are read and inflated here, because a member must be told
apart from its claim: it never takes more memory than it yields, and its size, its end and its CRC
must be what the directory says.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from moe_weights.checkpoint.file_access import (
    LFS_POINTER_CAUSE,
    is_lfs_pointer,
    malformed_file_error,
    read_range,
    stat_descriptor,
)
from moe_weights.errors import CheckpointError

_ADVICE = "write the file again with numpy.savez, or download it again"
_CHUNK_NBYTES = 1 << 20
_LOCAL_HEADER_NBYTES = 30
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED_FLAG = 0x1
_UTF8_FLAG = 0x800
# Deflate yields at most 258 bytes for 2 bits; zlib's own documentation gives 1032:1.
_MAX_DEFLATE_RATIO = 1032
_DEFLATE_SLACK_NBYTES = 1024
_UNREADABLE_DIRECTORY = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    EOFError,
    OverflowError,
    ValueError,
)


class DamagedMemberError(CheckpointError):
    """The bytes of one member are not what the archive says."""

    def __init__(self, file: str, member: str, cause: str) -> None:
        """Keep the facts.

        Args:
            file: The archive, relative to the model directory.
            member: Name of the member.
            cause: What is wrong.
        """
        self.file = file
        self.member = member
        self.cause = cause
        super().__init__(file, member, cause)

    def __str__(self) -> str:
        return str(malformed_file_error(self.file, [self.problem], _ADVICE))

    @property
    def problem(self) -> str:
        """Member and cause in one line."""
        return f'member "{self.member}": {self.cause}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipMember:
    """One `.npy` member of an archive, as the directory describes it.

    Attributes:
        name: Member name with `.npy`.
        is_deflated: Compressed with deflate; otherwise stored as it is.
        data_offset: First byte of the stored or compressed bytes, from the start of the file.
        compressed_nbytes: Their number.
        nbytes: Number of bytes after inflation, a claim until they were read.
        crc: CRC-32 of the inflated bytes, as claimed.
    """

    name: str
    is_deflated: bool
    data_offset: int
    compressed_nbytes: int
    nbytes: int
    crc: int


def read_npy_members(descriptor: int, file: str) -> tuple[ZipMember, ...]:
    """List the `.npy` members in directory order; other members are ignored.

    Args:
        descriptor: The open archive.
        file: Name in messages.

    Raises:
        CheckpointError: no zip archive, or members that cannot be what the directory says.
    """
    file_nbytes = stat_descriptor(descriptor, file).st_size
    infos = _read_directory(descriptor, file)
    problems: list[str] = []
    members: list[ZipMember] = []
    seen: set[str] = set()
    for info in infos:
        if info.filename in seen:
            problems.append(f'the archive has the member "{info.filename}" twice')
            continue
        seen.add(info.filename)
        if not info.filename.endswith(".npy"):
            continue
        problem = _find_refusal(info)
        if problem is None:
            data_offset = _locate_member(descriptor, info, file)
            if data_offset is None:
                problem = "the directory points to a place where it does not begin"
            elif data_offset + info.compress_size > file_nbytes:
                problem = (
                    f"its {info.compress_size} bytes from byte {data_offset} reach beyond the end "
                    f"of the file ({file_nbytes} bytes)"
                )
            else:
                members.append(
                    ZipMember(
                        name=info.filename,
                        is_deflated=info.compress_type == zipfile.ZIP_DEFLATED,
                        data_offset=data_offset,
                        compressed_nbytes=info.compress_size,
                        nbytes=info.file_size,
                        crc=info.CRC,
                    )
                )
        if problem is not None:
            problems.append(f'member "{info.filename}": {problem}')
    if problems:
        raise malformed_file_error(file, problems, _ADVICE)
    return tuple(members)


def iter_member_chunks(
    descriptor: int, member: ZipMember, file: str, chunk_nbytes: int = _CHUNK_NBYTES
) -> Iterator[bytes]:
    """Yield a member's inflated bytes; size and CRC are known to be right only when it has ended.

    Args:
        descriptor: The open archive.
        member: From `read_npy_members` of the same file.
        file: Name in messages.
        chunk_nbytes: Most bytes held at a time.

    Raises:
        CheckpointError: the bytes do not agree with the directory.
    """
    chunks = (_inflate if member.is_deflated else _stored_chunks)(
        descriptor, member, file, chunk_nbytes
    )
    crc, produced = 0, 0
    for chunk in chunks:
        produced += len(chunk)
        if produced > member.nbytes:
            raise DamagedMemberError(
                file, member.name, f"it holds more than the {member.nbytes} bytes it declares"
            )
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if produced != member.nbytes:
        raise DamagedMemberError(
            file, member.name, f"it declares {member.nbytes} bytes but holds {produced}"
        )
    if crc != member.crc:
        raise DamagedMemberError(
            file,
            member.name,
            f"wrong CRC: its bytes give {crc:08x}, the archive says {member.crc:08x}",
        )


def _read_directory(descriptor: int, file: str) -> list[zipfile.ZipInfo]:
    if is_lfs_pointer(read_range(descriptor, 0, _head_nbytes(descriptor, file), file)):
        raise CheckpointError(f"{file}: {LFS_POINTER_CAUSE}")
    try:
        with (
            open(descriptor, "rb", closefd=False) as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            return archive.infolist()
    except _UNREADABLE_DIRECTORY as error:
        raise malformed_file_error(
            file, [f"it is no readable zip archive ({error})"], _ADVICE
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error


def _head_nbytes(descriptor: int, file: str) -> int:
    return min(stat_descriptor(descriptor, file).st_size, 64)


def _find_refusal(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTED_FLAG:
        return "it is encrypted"
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return f"compression method {info.compress_type} is not supported; use stored or deflated"
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return f"it is stored in {info.compress_size} bytes but declares {info.file_size}"
    limit = info.compress_size * _MAX_DEFLATE_RATIO + _DEFLATE_SLACK_NBYTES
    if info.file_size > limit:
        return (
            f"it declares {info.file_size} bytes; {info.compress_size} compressed bytes cannot "
            f"give more than {limit}"
        )
    return None


def _locate_member(descriptor: int, info: zipfile.ZipInfo, file: str) -> int | None:
    file_nbytes = stat_descriptor(descriptor, file).st_size
    if not 0 <= info.header_offset <= file_nbytes - _LOCAL_HEADER_NBYTES:
        return None
    local = read_range(descriptor, info.header_offset, _LOCAL_HEADER_NBYTES, file)
    name_nbytes = int.from_bytes(local[26:28], "little")
    extra_nbytes = int.from_bytes(local[28:30], "little")
    name_offset = info.header_offset + _LOCAL_HEADER_NBYTES
    if not local.startswith(_LOCAL_SIGNATURE) or name_offset + name_nbytes > file_nbytes:
        return None
    encoding = "utf-8" if info.flag_bits & _UTF8_FLAG else "cp437"
    if read_range(descriptor, name_offset, name_nbytes, file) != info.orig_filename.encode(
        encoding
    ):
        return None
    return name_offset + name_nbytes + extra_nbytes


def _stored_chunks(
    descriptor: int, member: ZipMember, file: str, chunk_nbytes: int
) -> Iterator[bytes]:
    for start in range(0, member.nbytes, chunk_nbytes):
        nbytes = min(chunk_nbytes, member.nbytes - start)
        yield read_range(descriptor, member.data_offset + start, nbytes, file)


def _inflate(descriptor: int, member: ZipMember, file: str, chunk_nbytes: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    position, remaining = member.data_offset, member.compressed_nbytes
    pending = b""
    while not inflater.eof:
        if not pending and remaining:
            pending = read_range(descriptor, position, min(chunk_nbytes, remaining), file)
            position += len(pending)
            remaining -= len(pending)
        try:
            chunk = inflater.decompress(pending, chunk_nbytes)
        except zlib.error as error:
            raise DamagedMemberError(
                file, member.name, f"it cannot be inflated ({error})"
            ) from error
        if not chunk and not pending and not remaining and not inflater.eof:
            raise DamagedMemberError(file, member.name, "its compressed bytes end too early")
        pending = inflater.unconsumed_tail
        if chunk:
            yield chunk
    if remaining or inflater.unused_data:
        raise DamagedMemberError(file, member.name, "bytes follow the end of its compressed stream")
