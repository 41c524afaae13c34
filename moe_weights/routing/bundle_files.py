"""How do the bytes of a bundle's files become payloads, with file and line when they do not?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from moe_weights.atomic_files import open_regular_file
from moe_weights.routing.artifacts import ArtifactName, JsonObject
from moe_weights.routing.issues import (
    BundleError,
    file_error,
    missing_file_error,
    schema_error,
)
from moe_weights.routing.json_text import JsonFaultError, check_json_value, parse_object
from moe_weights.routing.schema_check import find_schema_issues

# 100 layers of 512 experts with all rows are 5 MB; a line without end must not fill the memory.
_MAX_LINE_BYTES = 64 * 2**20


def load_json_artifact(path: Path, artifact: ArtifactName) -> JsonObject:
    """Read one JSON file of a bundle.

    Raises:
        BundleError: it is not strict JSON or breaks its schema.
        MissingFileError: it is not there.
    """
    payload = read_json_object(path)
    issues = find_schema_issues(artifact, payload, artifact, str(path))
    if issues:
        raise schema_error(issues)
    return payload


def iter_ndjson(stream: IO[bytes], path: Path) -> Iterator[tuple[JsonObject, str]]:
    """Give each object of an NDJSON file with `<file>:<line>`, holding one line at a time.

    Args:
        stream: The file, open at its start; blank lines are ignored.
        path: Its name, for places.

    Raises:
        BundleError: a line is not strict JSON, not an object, cut off, or longer than 64 MiB.
    """
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES):
        number += 1
        place = f"{path}:{number}"
        is_whole = line.endswith(b"\n")
        if not is_whole and len(line) == _MAX_LINE_BYTES:
            raise file_error("line_too_long", f"a line has more than {len(line)} bytes", place)
        if not line.strip(b" \t\r\n"):
            continue
        try:
            payload = parse_object(line)
        except JsonFaultError as fault:
            code, message = fault.code, fault.message
            if not is_whole and code in {"invalid_json", "not_utf8"}:
                code = "truncated_last_line"
                message = f"the last line is cut off ({message}); remove it or copy the file again"
            raise file_error(code, message, place) from fault
        yield payload, place


def read_json_object(path: Path) -> JsonObject:
    """Read one JSON file, without its schema.

    Raises:
        BundleError: it is not strict JSON.
        MissingFileError: it is not there.
    """
    try:
        with open_regular_file(path) as stream:
            payload = parse_object(stream.read())
        check_json_value(payload)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing_file_error(path) from error
    except JsonFaultError as fault:
        place = str(path) if fault.line is None else f"{path}:{fault.line}"
        raise file_error(fault.code, fault.message, place) from fault
    except OSError as error:
        raise unreadable_error(path, error) from error
    return payload


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, also a link whose target is gone."""
    return os.path.lexists(path)


def check_readable(path: Path) -> None:
    """Refuse what `open_regular_file` would.

    Raises:
        BundleError: it is no regular file.
        MissingFileError: it is not there.
    """
    try:
        open_regular_file(path).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing_file_error(path) from error
    except OSError as error:
        raise unreadable_error(path, error) from error


def check_line_values(payload: JsonObject, place: str) -> None:
    """Refuse numbers that are not finite and bottomless nesting in a line of a trace.

    Raises:
        BundleError: naming the place.
    """
    try:
        check_json_value(payload)
    except JsonFaultError as fault:
        raise file_error(fault.code, fault.message, place) from fault


def unreadable_error(path: Path, error: OSError) -> BundleError:
    """Return the refusal of a file that the system does not let us read."""
    cause = error.strerror or str(error)
    return file_error("unreadable_file", f"cannot be read: {cause}", str(path))
