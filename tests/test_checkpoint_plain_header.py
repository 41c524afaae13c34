from __future__ import annotations

import json
import unittest
from typing import Any
from unittest import mock

from moe_weights.checkpoint import safetensors_file
from moe_weights.checkpoint.plain_header import parse_plain_header
from moe_weights.checkpoint.safetensors_file import (
    RawHeader,
    SafetensorsHeader,
    parse_header,
    parse_strictly,
)
from moe_weights.errors import CheckpointError

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

A = '"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}'
B = '"b": {"dtype": "U8", "shape": [4], "data_offsets": [12, 16]}'
EMPTY = '"z": {"dtype": "U8", "shape": [0], "data_offsets": [16, 16]}'
Y = EMPTY.replace("z", "y")
METADATA = '"__metadata__": {"format": "pt"}'
# The shape (True, 4) is equal to (1, 4).
ONE_BY_FOUR = """
    "c": {"dtype": "U8", "shape": [1, 4], "data_offsets": [4, 8]},
    "d": {"dtype": "U8", "shape": [true, 4], "data_offsets": [8, 12]}"""
N_VALUES = 16


def parse_plain(text: str, values_nbytes: int = N_VALUES) -> Any:
    return parse_plain_header(text.encode(), values_nbytes, 100, "m.safetensors")


def outcome(parse: Any, raw: RawHeader) -> SafetensorsHeader | str:
    try:
        found = parse(raw, "m.safetensors")
    except CheckpointError as error:
        return str(error)
    assert isinstance(found, SafetensorsHeader)
    return found


class PlainHeaders(unittest.TestCase):
    def test_are_read_without_the_strict_reader(self) -> None:
        for text in (
            f"{{{A}, {B}}}",
            f"{{{METADATA}, {B}, {A}}}  ",
            f'{{"__metadata__": {{}}, {A}, {B}}}',
            f"{{{A}, {B}, {EMPTY}, {Y}}}",
        ):
            raw = RawHeader(encoded=text.encode(), values_nbytes=N_VALUES)
            expected = parse_strictly(raw, "m.safetensors")
            with mock.patch.object(safetensors_file, "parse_strictly") as strict:
                self.assertEqual(parse_header(raw, "m.safetensors"), expected)
            strict.assert_not_called()

    def test_share_equal_texts_and_shapes(self) -> None:
        again = B.replace('"b"', '"c"').replace("[12, 16]", "[16, 20]")
        tensors, _metadata = parse_plain(f"{{{A}, {B}, {again}}}", 20)
        self.assertIs(tensors[1].shape, tensors[2].shape)
        self.assertIs(tensors[1].dtype_code, tensors[2].dtype_code)


class OddHeaders(unittest.TestCase):
    def test_are_left_to_the_strict_reader(self) -> None:
        for text in (
            "",
            "[]",
            "1",
            "null",
            '"a"',
            "{",
            f"{{{A}, {A}, {B}}}",
            f'{{{A}, {B}, "__metadata__": null}}',
            f'{{{A}, {B}, "__metadata__": []}}',
            f'{{{A}, {B}, "__metadata__": {{"a": 1}}}}',
            f'{{{A}, {B}, "__metadata__": {{"a": "1", "a": "2"}}}}',
            f"{{{A}, {B}, {METADATA}, {METADATA}}}",
            f'{{{A}, {B}, "c": 1}}',
            f'{{{A}, {B}, "c": {{}}}}',
            f"{{{A}, {B.replace('shape', 'size')}}}",
            f"{{{A}, {B.replace('[4]', '{}')}}}",
            f"{{{A}, {B.replace('[4]', '4')}}}",
            f"{{{A}, {B.replace('[4]', '{}').replace('16', '13')}}}",
            f"{{{A.replace('[0, 12]', '[false, 12]')}, {B}}}",
            f"{{{B.replace('12', '0').replace('16', '4')}, {ONE_BY_FOUR}}}",
            f"{{{A}, {B.replace('[4]', '[4.0]')}}}",
            f"{{{A}, {B.replace('[4]', '[-4]')}}}",
            f"{{{A}, {B.replace('[4]', '[4, true]')}}}",
            f"{{{A}, {B.replace('[4]', '[4, NaN]')}}}",
            f"{{{A}, {B.replace('[4]', '[5]')}}}",
            f"{{{A}, {B.replace('U8', 'F4').replace('[4]', '[9]')}}}",
            f"{{{A}, {B.replace('U8', 'NEW')}}}",
            f"{{{A}, {B.replace(chr(34) + 'U8' + chr(34), '8')}}}",
            f"{{{A}, {B.replace('[12, 16]', '[12]')}}}",
            f"{{{A}, {B.replace('[12, 16]', '[13, 17]')}}}",
            f"{{{A}, {B.replace('[12, 16]', '[8, 12]')}}}",
            f'{{{A}, {B[:-1]}, "more": 1}}}}',
            f'{{{A}, {B[:-1]}, "shape": [4]}}}}',
            f"{{{A}, {B.replace('b', 'b' + chr(92) + 'u0062')}}}",
            f"{{{A.replace('[2, 3]', '[0, 99999999999, 99999999999]').replace('12]', '0]')}}}",
            "[" * 100_000,
        ):
            for values_nbytes in (N_VALUES, 13, 12):
                self.assertIsNone(parse_plain(text, values_nbytes), text[:100])
        self.assertIsNone(parse_plain_header(b"\xff", 0, 8, "m"))
        self.assertIsNone(parse_plain(f"{{{A}, {B}}}", N_VALUES + 1))

    @settings(deadline=None, max_examples=1000)
    @given(
        st.lists(st.sampled_from((A, B, METADATA)), min_size=1, max_size=4),
        st.integers(0, 200),
        st.integers(0, 4),
        st.sampled_from(
            ("", "0", "1", '"', "true", "null", "1.0", "{}", "[]", '"a"', '"a": 1', "-", "\\", ",")
        ),
        st.sampled_from((0, 12, 16)),
    )
    def test_are_judged_as_the_strict_reader_does(
        self, members: list[str], start: int, length: int, put: str, values_nbytes: int
    ) -> None:
        text = json.dumps(None) if not members else f"{{{', '.join(members)}}}"
        text = text[:start] + put + text[start + length :]
        raw = RawHeader(encoded=text.encode(), values_nbytes=values_nbytes)
        self.assertEqual(outcome(parse_header, raw), outcome(parse_strictly, raw))
