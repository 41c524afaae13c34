"""How the shard index and the shards agree: `logs/index_report.json` and its warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import cast

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.locate import CheckpointFiles
from moe_weights.checkpoint.model_config import to_integer
from moe_weights.checkpoint.shard_index import ShardIndex
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.findings import Finding, FindingKind, list_some


@dataclass(frozen=True, slots=True, kw_only=True)
class MisplacedTensor:
    """A tensor that lies in another scanned shard than the one the index names."""

    tensor: str
    index_shard: str
    found_in: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """The index held against the headers of the scanned shards; every list is sorted.

    Attributes:
        expected_shards: Shards that the index names.
        scanned_shards: Shards that were read.
        missing_shards: Expected, but no readable file.
        extra_scanned_shards: Read, though the index does not name them.
        missing_tensors: Named by the index for a scanned shard, found in none.
        extra_tensors: Found, though the index does not name them.
        misplaced_tensors: Found in another shard than the index says.
        not_scanned_due_to_max_files: Shards left out by `scan.max_files`.
        extra_safetensors_files_on_disk: Files beside the index that it does not name.
        extra_files_not_read: Other files that it does not name: in subfolders that are not hidden,
            or beside it with another suffix that is scanned.
        index_metadata: The index's own `metadata`.
        total_size_found: Bytes of all tensors read; None when not all shards were.
    """

    expected_shards: tuple[str, ...]
    scanned_shards: tuple[str, ...]
    missing_shards: tuple[str, ...]
    extra_scanned_shards: tuple[str, ...]
    missing_tensors: tuple[str, ...]
    extra_tensors: tuple[str, ...]
    misplaced_tensors: tuple[MisplacedTensor, ...]
    not_scanned_due_to_max_files: tuple[str, ...]
    extra_safetensors_files_on_disk: tuple[str, ...]
    extra_files_not_read: tuple[str, ...]
    index_metadata: Mapping[str, JsonValue]
    total_size_found: int | None


def compare_index(
    files: CheckpointFiles, index: ShardIndex, headers: Sequence[TensorHeader]
) -> IndexReport:
    """Hold an index that was used for the scan against what was found."""
    cut_off = set(files.not_scanned_due_to_max_files)
    expected = set(files.expected_shards)
    is_as_found = {header.name: header.file for header in headers} == index.weight_map
    if is_as_found and len(headers) == len(index.weight_map):
        return _report(files, index, headers)
    found_in: dict[str, set[str]] = {}
    for header in headers:
        found_in.setdefault(header.name, set()).add(header.file)
    missing_tensors = [
        name
        for name, shard in index.weight_map.items()
        # A shard cut off on purpose hides its tensors; that is not the index's fault. Shards with
        # a suffix that is not scanned are none of this report's business.
        if name not in found_in and shard in expected and shard not in cut_off
    ]
    misplaced = [
        MisplacedTensor(tensor=name, index_shard=shard, found_in=min(found_in[name]))
        for name, shard in index.weight_map.items()
        if name in found_in and shard not in found_in[name] and shard not in cut_off
    ]
    return _report(
        files,
        index,
        headers,
        missing_tensors=tuple(sorted(missing_tensors)),
        extra_tensors=tuple(sorted(set(found_in) - set(index.weight_map))),
        misplaced_tensors=tuple(sorted(misplaced, key=lambda item: item.tensor)),
    )


def _report(
    files: CheckpointFiles,
    index: ShardIndex,
    headers: Sequence[TensorHeader],
    *,
    missing_tensors: tuple[str, ...] = (),
    extra_tensors: tuple[str, ...] = (),
    misplaced_tensors: tuple[MisplacedTensor, ...] = (),
) -> IndexReport:
    scanned = set(files.files)
    cut_off = set(files.not_scanned_due_to_max_files)
    expected = set(files.expected_shards)
    # A stated size can only be judged when every shard it speaks of was read.
    is_whole = not files.missing_shards and not cut_off and expected == set(index.shards)
    return IndexReport(
        expected_shards=tuple(sorted(expected)),
        scanned_shards=tuple(sorted(scanned)),
        missing_shards=tuple(sorted(files.missing_shards)),
        extra_scanned_shards=tuple(sorted(scanned - expected)),
        missing_tensors=missing_tensors,
        extra_tensors=extra_tensors,
        misplaced_tensors=misplaced_tensors,
        not_scanned_due_to_max_files=tuple(sorted(cut_off)),
        extra_safetensors_files_on_disk=tuple(sorted(files.extra_safetensors_files_on_disk)),
        extra_files_not_read=tuple(sorted(files.extra_files_not_read)),
        index_metadata=cast("Mapping[str, JsonValue]", index.metadata),
        total_size_found=sum(header.nbytes for header in headers) if is_whole else None,
    )


def index_report_json(report: IndexReport) -> dict[str, JsonValue]:
    """Return `logs/index_report.json`."""
    # CONTRACT SURFACE: logs/index_report.json
    content: dict[str, JsonValue] = {
        "expected_shards": report.expected_shards,
        "scanned_shards": report.scanned_shards,
        "missing_shards": report.missing_shards,
        "extra_scanned_shards": report.extra_scanned_shards,
        "missing_tensors": report.missing_tensors,
        "extra_tensors": report.extra_tensors,
        "misplaced_tensors": [
            {
                "tensor": item.tensor,
                "index_shard": item.index_shard,
                "found_in": item.found_in,
            }
            for item in report.misplaced_tensors
        ],
        "not_scanned_due_to_max_files": report.not_scanned_due_to_max_files,
        "extra_safetensors_files_on_disk": report.extra_safetensors_files_on_disk,
        "extra_files_not_read": report.extra_files_not_read,
    }
    if report.index_metadata:
        content["index_metadata"] = report.index_metadata
    return content


def index_findings(report: IndexReport) -> list[Finding]:
    """Return one warning per list that is not empty, and one for a wrong `total_size`."""
    lists = {
        "missing shards": list(report.missing_shards),
        "extra scanned shards": list(report.extra_scanned_shards),
        "missing tensors": list(report.missing_tensors),
        "extra tensors": list(report.extra_tensors),
        "misplaced tensors": [
            f"{item.tensor} (index: {item.index_shard}, found in: {item.found_in})"
            for item in report.misplaced_tensors
        ],
        "extra safetensors files on disk": list(report.extra_safetensors_files_on_disk),
    }
    findings = [
        Finding(
            kind=FindingKind.INDEX,
            message=f"[index] {label}: {list_some(names)}",
            count=len(names),
            hint="the full list is in logs/index_report.json",
        )
        for label, names in lists.items()
        if names
    ]
    if report.extra_files_not_read:
        findings.append(_extra_files_finding(report.extra_files_not_read))
    stated = report.index_metadata.get("total_size")
    found = report.total_size_found
    if stated is not None and found is not None and to_integer(stated) != found:
        findings.append(
            Finding(
                kind=FindingKind.INDEX,
                message=f"[index] metadata.total_size is {stated}, the headers add up to {found}",
                hint="the index was made for other files, or files were edited later",
            )
        )
    return findings


def _extra_files_finding(files: Sequence[str]) -> Finding:
    # Never opened, so they may belong to the model, be a copy of it, or adapters. A folder may hold
    # hundreds, so it is named once.
    by_folder: dict[str, list[str]] = {}
    for file in files:
        by_folder.setdefault(str(PurePosixPath(file).parent), []).append(file)
    described: list[str] = []
    for folder, held in by_folder.items():
        is_told_alone = len(held) == 1 or folder == "."
        described += held if is_told_alone else [f"{folder}/ ({len(held)} files)"]
    return Finding(
        kind=FindingKind.INDEX,
        message=f"[index] extra files not read: {list_some(described)}",
        file=files[0] if len(files) == 1 else "",
        count=len(files),
        hint="if they belong to the model, name them in the index or set "
        "scan.use_safetensors_index_json to false; the full list is in logs/index_report.json",
    )
