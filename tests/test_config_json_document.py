from __future__ import annotations

import unittest

from moe_weights.config.json_document import parse_json_text
from moe_weights.config.json_path import Fault, dotted_key, json_path


class ParsesText(unittest.TestCase):
    def test_gives_plain_values(self) -> None:
        value, faults = parse_json_text('{"a": [1, 2.5, null, true, {"b": "x"}]}')
        self.assertEqual(value, {"a": [1, 2.5, None, True, {"b": "x"}]})
        self.assertEqual(faults, ())

    def test_names_each_repeated_key_once(self) -> None:
        value, faults = parse_json_text(
            '{"a": [{"k": 1, "k": 2, "k": 3, "m": 1}], "a": [{"k": 1, "k": 2}]}'
        )
        self.assertEqual(value, {"a": [{"k": 2}]})
        self.assertIs(type(value), dict)
        message = "the key is given more than once; keep one of them"
        self.assertEqual(faults, (Fault(("a",), message), Fault(("a", 0, "k"), message)))

    def test_empty_text(self) -> None:
        message = "the file is empty; delete it and run init_run again to get a template"
        for text in ("", " \n"):
            self.assertEqual(parse_json_text(text), (None, (Fault((), message),)))

    def test_deep_nesting(self) -> None:
        message = "not readable: objects or lists are nested too deeply"
        for depth in (200, 100_000):
            text = "[" * depth + "]" * depth
            self.assertEqual(parse_json_text(text), (None, (Fault((), message),)))

    def test_an_integer_of_too_many_digits(self) -> None:
        message = "not readable: an integer has too many digits"
        self.assertEqual(parse_json_text("1" * 5000), (None, (Fault((), message),)))

    def test_text_that_is_not_unicode(self) -> None:
        value, faults = parse_json_text('{"a": ["ok", "\\ud800"], "b": {"\\udc00": 1}}')
        self.assertIsNone(value)
        message = "is not valid Unicode; it has half of a surrogate pair"
        self.assertEqual(
            faults,
            (
                Fault(("a", 1), f'"\\ud800" {message}'),
                Fault(("b",), f'"\\udc00" {message}'),
            ),
        )


class NamesPlaces(unittest.TestCase):
    def test_paths(self) -> None:
        for location, path, dotted in (
            ((), "$", ""),
            (("a",), "$.a", "a"),
            (("$schema",), "$.$schema", "$schema"),
            (("a", 0, "b"), "$.a[0].b", "a[0].b"),
            (("a", "x.y", "z"), '$.a["x.y"].z', 'a["x.y"].z'),
            (("", 1), '$[""][1]', '[""][1]'),
        ):
            self.assertEqual(json_path(location), path)
            self.assertEqual(dotted_key(location), dotted)
