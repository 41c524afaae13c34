"""Which shard holds which tensor, according to the shard index of a folder?

The index is `model.safetensors.index.json`, else the first `*.safetensors.index.json` by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from moe_weights.atomic_files import open_regular_file
from moe_weights.checkpoint.file_access import LFS_POINTER_CAUSE, is_lfs_pointer
from moe_weights.checkpoint.strict_json import StrictJsonError, parse_json
from moe_weights.errors import ShardIndexError

INDEX_NAME = "model.safetensors.index.json"
INDEX_SUFFIX = ".safetensors.index.json"

IndexStatus: TypeAlias = Literal["disabled", "not_found", "active", "unavailable", "error"]

_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_PROBLEMS_SHOWN = 3
_JSON_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """A parsed shard index.

    Attributes:
        path: The index file.
        weight_map: Tensor name to shard, relative to the index's folder, with `/`.
        metadata: The `metadata` object; empty when there is none.
    """

    path: Path
    weight_map: Mapping[str, str]
    metadata: Mapping[str, object]

    @property
    def shards(self) -> tuple[str, ...]:
        """Distinct shards in sorted order."""
        return tuple(sorted(set(self.weight_map.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """What became of the search for a shard index.

    Attributes:
        status: Outcome of search and parsing, whether or not the index chooses the files:
            `active` also where the model path is a file. `unavailable` is never set here.
        searched: An index was looked for.
        found: An index file exists.
        parsed: It was read successfully.
        active: It decided which files are scanned.
        used_for_scan: Equal to `active`.
        index_path: The file found; kept when it could not be parsed.
        error: Why it could not be parsed; "" otherwise.
        index: Its content when parsed.
    """

    status: IndexStatus
    searched: bool = False
    found: bool = False
    parsed: bool = False
    active: bool = False
    used_for_scan: bool = False
    index_path: Path | None = None
    error: str = ""
    index: ShardIndex | None = None


def search_shard_index(folder: Path, *, is_usable: bool) -> IndexState:
    """Look for the index of a folder, not of its subfolders, and read it.

    Args:
        folder: A folder that can be listed.
        is_usable: The index may decide which files are scanned.
    """
    index_path = _find_shard_index(folder)
    if index_path is None:
        return IndexState(status="not_found", searched=True)
    try:
        index = load_shard_index(index_path)
    except ShardIndexError as error:
        return IndexState(
            status="error", searched=True, found=True, index_path=index_path, error=str(error)
        )
    return IndexState(
        status="active",
        searched=True,
        found=True,
        parsed=True,
        active=is_usable,
        used_for_scan=is_usable,
        index_path=index_path,
        index=index,
    )


def load_shard_index(path: Path) -> ShardIndex:
    """Read and check an index file.

    Raises:
        ShardIndexError: it cannot be read or trusted; the message is the cause alone, without path.
    """
    try:
        with open_regular_file(path) as stream:
            encoded = stream.read()
    except OSError as error:
        raise ShardIndexError(f"it cannot be read ({error.strerror or error})") from error
    if is_lfs_pointer(encoded):
        raise ShardIndexError(LFS_POINTER_CAUSE)
    if not encoded.strip():
        raise ShardIndexError("it is empty")
    try:
        parsed = parse_json(encoded)
    except StrictJsonError as error:
        raise ShardIndexError(f"it is {error}") from error
    if not isinstance(parsed.value, dict):
        raise ShardIndexError("it is not a JSON object")
    if "weight_map" not in parsed.value:
        raise ShardIndexError("it has no weight_map")
    weight_map = parsed.value["weight_map"]
    if not isinstance(weight_map, dict):
        raise ShardIndexError("weight_map is not an object")
    problems = [f'the key "{key}" occurs twice' for key in parsed.duplicate_keys]
    shard_of = _normalise_shards(weight_map, problems)
    if problems:
        shown = "; ".join(problems[:_MAX_PROBLEMS_SHOWN])
        more = len(problems) - _MAX_PROBLEMS_SHOWN
        raise ShardIndexError(f"{shown}; and {more} more" if more > 0 else shown)
    metadata = parsed.value.get("metadata")
    return ShardIndex(
        path=path,
        weight_map=shard_of,
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _find_shard_index(folder: Path) -> Path | None:
    # By name alone: a link without target counts as found, so that reading it tells what is wrong.
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(INDEX_SUFFIX))
    if not names:
        return None
    return folder / (INDEX_NAME if INDEX_NAME in names else names[0])


def _normalise_shards(weight_map: dict[str, object], problems: list[str]) -> dict[str, str]:
    # A hundred shards hold 100 000 tensors: what is said of each is found out once per shard.
    if set(map(type, weight_map.values())) <= {str}:
        shards: list[str] = list(weight_map.values())  # type: ignore[arg-type]
        normalised = {entry: _normalise(entry) for entry in set(shards)}
        if not any(map(_find_refusal, normalised)):
            return dict(zip(weight_map, map(normalised.__getitem__, shards), strict=True))
    for tensor, entry in weight_map.items():
        if not isinstance(entry, str):
            problems.append(
                f'weight_map["{tensor}"] is {_JSON_NAMES[type(entry)]}, not a file name'
            )
            continue
        refusal = _find_refusal(entry)
        if refusal is not None:
            problems.append(f'weight_map["{tensor}"] = "{entry}" {refusal}')
    return {}


def _normalise(entry: str) -> str:
    segments = entry.replace("\\", "/").split("/")
    return "/".join(part for part in segments if part not in {"", "."})


def _find_refusal(entry: str) -> str | None:
    text = entry.replace("\\", "/")
    if text.startswith("/") or _DRIVE.match(text):
        return "is an absolute path; shards must lie beside the index"
    segments = text.split("/")
    if ".." in segments:
        return "leaves the folder of the index; shards must lie beside it"
    if "\0" in text or all(part in {"", "."} for part in segments):
        return "names no file"
    return None
