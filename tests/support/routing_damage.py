"""Changes of the bytes of a bundle's files, each with what must be said about it."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.routing_mutations import DERIVED, TRACE

Bytes = Callable[[bytes], bytes]


def second_line(change: Bytes) -> Bytes:
    def apply(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        lines[1] = change(lines[1])
        return b"".join(lines)

    return apply


def swap(old: bytes, new: bytes) -> Bytes:
    return lambda content: content.replace(old, new, 1)


DEEP = b"[" * 500 + b"]" * 500
# file, change of its bytes, code, place
DAMAGE: dict[str, tuple[str, Bytes, str, str]] = {
    "a last line that is cut off": (
        TRACE, lambda b: b[:-20], "truncated_last_line", f"{TRACE}:3",
    ),
    "a last line cut within a character": (
        TRACE, lambda b: b + b'{"a": "\xc3', "truncated_last_line", f"{TRACE}:4",
    ),
    "a middle line that is cut off": (
        TRACE, second_line(lambda line: line[:40] + b"\n"), "invalid_json", f"{TRACE}:2",
    ),
    "two objects on a line": (
        TRACE, second_line(lambda line: line.strip() + line), "invalid_json", f"{TRACE}:2",
    ),
    "a line that is a list": (
        TRACE, second_line(lambda _: b"[1]\n"), "not_an_object", f"{TRACE}:2",
    ),
    "a line that is null": (
        TRACE, second_line(lambda _: b"null\n"), "not_an_object", f"{TRACE}:2",
    ),
    "a key twice in a line": (
        TRACE, second_line(swap(b"{", b'{"run_id": "x", ')), "duplicate_key", f"{TRACE}:2",
    ),
    "a key twice in a layer": (
        TRACE,
        second_line(swap(b'"layer_kind"', b'"layer_index": 0, "layer_kind"')),
        "duplicate_key",
        f"{TRACE}:2",
    ),
    "a byte order mark before the trace": (
        TRACE, lambda b: b"\xef\xbb\xbf" + b, "byte_order_mark", f"{TRACE}:1",
    ),
    "Latin-1 text": (
        TRACE, second_line(swap(b" word", b"\xe9")), "not_utf8", f"{TRACE}:2",
    ),
    "UTF-16 text": (
        TRACE, lambda b: b.decode().encode("utf-16"), "not_utf8", f"{TRACE}:1",
    ),
    "half a surrogate pair": (
        TRACE, second_line(swap(b" word", b"\\ud800")), "not_unicode", f"{TRACE}:2",
    ),
    "a thousand levels": (
        TRACE,
        second_line(swap(b'" word"', b"[" * 900 + b"]" * 900)),
        "nested_too_deeply",
        f"{TRACE}:2",
    ),
    "a hundred thousand levels": (
        TRACE,
        second_line(swap(b'" word"', b"[" * 100_000 + b"]" * 100_000)),
        "nested_too_deeply",
        f"{TRACE}:2",
    ),
    "an integer of 5000 digits": (
        TRACE, second_line(swap(b'" word"', b"9" * 5000)), "integer_too_long", f"{TRACE}:2",
    ),
    "a number too large for a float": (
        TRACE,
        second_line(swap(b'"decode_start": 10.0', b'"decode_start": 1e999')),
        "non_standard_number",
        f"{TRACE}:2",
    ),
    "a manifest cut off": (
        "manifest.json", lambda b: b[:50], "invalid_json", "manifest.json:1",
    ),
    "an empty manifest": (
        "manifest.json", lambda _: b"", "invalid_json", "manifest.json:1",
    ),
    "a manifest that is a list": (
        "manifest.json", lambda b: b"[" + b + b"]", "not_an_object", "manifest.json",
    ),
    "a key twice in the manifest": (
        "manifest.json", swap(b"{", b'{"run_id": "x", '), "duplicate_key", "manifest.json",
    ),
    "a byte order mark before the layout": (
        "layout.json", lambda b: b"\xef\xbb\xbf" + b, "byte_order_mark", "layout.json",
    ),
    "a configuration of a thousand levels": (
        "manifest.json",
        swap(b'"capture_config": {}', b'"capture_config": {"a":%b}' % DEEP),
        "nested_too_deeply",
        "manifest.json",
    ),
    "a number too large for a float in a payload": (
        DERIVED,
        second_line(swap(b'"global_motif": {', b'"global_motif": {"x": 1e999, ')),
        "non_standard_number",
        f"{DERIVED}:2",
    ),
    "a derived trace that is cut off": (
        DERIVED, lambda b: b[:-9], "truncated_last_line", f"{DERIVED}:3",
    ),
}  # fmt: skip
