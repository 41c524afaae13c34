from __future__ import annotations

import errno
import json
import os
import unittest
from pathlib import Path

from moe_weights.config.load import effective_config_json, load_config, parse_config
from moe_weights.errors import ConfigError, ExitCode, UsageError
from moe_weights.findings import Finding, FindingKind
from tests.support.config_documents import ABSENT, ConfigFileCase, make_config_document


class LoadsAFile(ConfigFileCase):
    def test_the_template_has_no_findings(self) -> None:
        loaded = load_config(self.write())
        self.assertEqual(loaded.findings, ())
        self.assertEqual(loaded.source, self.path)
        self.assertEqual(loaded.raw, make_config_document())
        self.assertEqual(loaded.config, parse_config(make_config_document()))

    def test_a_byte_order_mark_does_no_harm(self) -> None:
        self.path.write_bytes(b"\xef\xbb\xbf" + json.dumps(make_config_document()).encode())
        self.assertEqual(load_config(self.path).config.model_path, "/model")

    def test_override_replaces_the_model_path_in_config_and_raw(self) -> None:
        loaded = load_config(self.write(), model_path_override="/other")
        self.assertEqual(loaded.config.model_path, "/other")
        self.assertEqual(loaded.raw["model_path"], "/other")

    def test_override_is_made_absolute(self) -> None:
        loaded = load_config(self.write(), model_path_override="some/model")
        self.assertEqual(loaded.config.model_path, str(Path.cwd() / "some" / "model"))

    def test_override_is_user_expanded(self) -> None:
        loaded = load_config(self.write(), model_path_override="~/model")
        self.assertEqual(loaded.config.model_path, str(Path.home() / "model"))

    def test_override_keeps_a_symbolic_link(self) -> None:
        (self.folder / "real").mkdir()
        link = self.folder / "link"
        link.symlink_to(self.folder / "real")
        loaded = load_config(self.write(), model_path_override=str(link))
        self.assertEqual(loaded.config.model_path, str(link))

    def test_override_mends_a_missing_or_wrong_model_path(self) -> None:
        for value in (ABSENT, 7):
            with self.subTest(value=value):
                loaded = load_config(self.write({"model_path": value}), model_path_override="/x")
                self.assertEqual(loaded.config.model_path, "/x")


class RefusesWhatItCannotRead(ConfigFileCase):
    def test_missing_file(self) -> None:
        with self.assertRaises(UsageError) as caught:
            load_config(self.path)
        self.assertEqual(
            str(caught.exception),
            f"config not found: {self.path}; run init_run first, it writes a template there",
        )
        self.assertEqual(caught.exception.exit_code, ExitCode.USAGE)

    def test_folder_in_place_of_the_file(self) -> None:
        self.path.mkdir()
        with self.assertRaises(UsageError) as caught:
            load_config(self.path)
        self.assertEqual(
            str(caught.exception),
            f"cannot read config {self.path}: {os.strerror(errno.EISDIR)}; "
            "check the path and its permissions",
        )

    def test_empty_override(self) -> None:
        with self.assertRaises(UsageError) as caught:
            load_config(self.write(), model_path_override="")
        self.assertEqual(
            str(caught.exception), "--model-path is empty; give a model directory or a shard"
        )

    def test_override_of_an_unknown_user(self) -> None:
        with self.assertRaises(UsageError) as caught:
            load_config(self.write(), model_path_override="~no-such-user-here/x")
        self.assertEqual(
            str(caught.exception),
            "--model-path ~no-such-user-here/x: Could not determine home directory.; "
            "write the path in full",
        )

    def test_bytes_that_are_not_utf8(self) -> None:
        self.path.write_bytes(b'{"a": "\xff"}')
        self.assertEqual(
            self.problems_of(lambda: load_config(self.path)),
            ["$: not UTF-8 text at byte 7; save it as UTF-8"],
        )

    def test_text_that_is_not_json(self) -> None:
        self.write_text('{\n  "a": 1,\n}')
        with self.assertRaises(ConfigError) as caught:
            load_config(self.path)
        message = str(caught.exception)
        self.assertTrue(message.startswith(f"{self.path}: 1 problem\n  $: not valid JSON at line "))
        self.assertTrue(
            message.endswith("JSON has no comments, no trailing commas, and only double quotes")
        )
        self.assertEqual(caught.exception.exit_code, ExitCode.USAGE)

    def test_line_and_column_of_a_syntax_fault(self) -> None:
        self.write_text('{\n  "a": 1\n  "b": 2\n}')
        self.assertEqual(
            self.problems_of(lambda: load_config(self.path)),
            [
                (
                    "$: not valid JSON at line 3, column 3: Expecting ',' delimiter; "
                    "JSON has no comments, no trailing commas, and only double quotes"
                )
            ],
        )

    def test_a_document_that_is_no_object(self) -> None:
        for text, got in (
            ("[]", "a list"),
            ("3", "the number 3"),
            ("null", "null"),
            ('"x"', 'the string "x"'),
        ):
            with self.subTest(text=text):
                self.write_text(text)
                self.assertEqual(
                    self.problems_of(lambda: load_config(self.path)),
                    [f"$: expected an object, got {got}"],
                )

    def test_repeated_keys_beside_other_problems(self) -> None:
        text = json.dumps(make_config_document())
        text = text.replace('"eps": 1e-12', '"eps": 1, "eps": -1')
        self.write_text(text)
        self.assertEqual(
            self.problems_of(lambda: load_config(self.path)),
            [
                "$.stats.eps: the key is given more than once; keep one of them",
                "$.stats.eps: expected a number >= 0, got the number -1",
            ],
        )

    def test_repeated_keys_alone(self) -> None:
        text = json.dumps(make_config_document())
        self.write_text(text.replace('"eps": 1e-12', '"eps": 1, "eps": 1e-12'))
        self.assertEqual(
            self.problems_of(lambda: load_config(self.path)),
            ["$.stats.eps: the key is given more than once; keep one of them"],
        )


class WarnsOfUnknownKeys(ConfigFileCase):
    def test_message_and_nearest_key(self) -> None:
        loaded = load_config(self.write({"stats.smaple_seed": 1}))
        self.assertEqual(
            loaded.findings,
            (
                Finding(
                    kind=FindingKind.CONFIG,
                    message="[config] unknown key: stats.smaple_seed",
                    hint='did you mean "sample_seed"?',
                ),
            ),
        )
        self.assertEqual(loaded.config, parse_config(make_config_document()))

    def test_names_of_our_own_code_are_no_keys(self) -> None:
        loaded = load_config(self.write({"$schema": ABSENT, "schema_reference": 5}))
        self.assertEqual(
            [finding.message for finding in loaded.findings],
            ["[config] unknown key: schema_reference"],
        )

    def test_raw_keeps_them_and_the_effective_config_does_not(self) -> None:
        loaded = load_config(self.write({"stats.smaple_seed": 1}))
        self.assertEqual(loaded.raw, make_config_document({"stats.smaple_seed": 1}))
        self.assertNotIn("smaple_seed", json.dumps(effective_config_json(loaded)))

    def test_everywhere_and_in_order(self) -> None:
        loaded = load_config(
            self.write(
                {
                    "zzz": {"a": 1},
                    "extract_rules[2].packed_split.axes": 1,
                    "extract_rules[0].foo": None,
                    "extract_rules[0].layout.row_axis": 1,
                    "quant_schemes[0].group size": 1,
                    "output.qqqq": [],
                }
            )
        )
        self.assertEqual(
            [(finding.message, finding.hint) for finding in loaded.findings],
            [
                (
                    "[config] unknown key: extract_rules[0].foo",
                    (
                        "known keys: name, match, enabled, ndim, layout, proj_group, expert_group, "
                        "proj, proj_map, layer_group, expert_count, stack, stack_group, "
                        "is_shared_expert, encodings, packed_split"
                    ),
                ),
                (
                    "[config] unknown key: extract_rules[0].layout.row_axis",
                    'did you mean "rows_axis"?',
                ),
                (
                    "[config] unknown key: extract_rules[2].packed_split.axes",
                    'did you mean "axis"?',
                ),
                ("[config] unknown key: output.qqqq", "known keys: format, compression"),
                (
                    '[config] unknown key: quant_schemes[0]["group size"]',
                    'did you mean "group_size"?',
                ),
                (
                    "[config] unknown key: zzz",
                    (
                        "known keys: $schema, model_path, scan, parsing, metadata, extract_rules, "
                        "mlx, stats, quant_schemes, delta_pairs, output, debug"
                    ),
                ),
            ],
        )

    def test_lists_them_among_other_problems(self) -> None:
        self.assertEqual(
            self.problems({"stats.smaple_seed": 1, "stats.eps": ABSENT}),
            [
                "$.stats.eps: required key is missing; the template of init_run shows it",
                '$.stats.smaple_seed: unknown key; did you mean "sample_seed"?',
            ],
        )


class ParsesADocumentInMemory(unittest.TestCase):
    def test_leaves_the_document_alone(self) -> None:
        document = make_config_document({"extra": 1})
        parse_config(document)
        self.assertEqual(document, make_config_document({"extra": 1}))

    def test_names_the_source(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            parse_config({**make_config_document(), "debug": 3}, source="here")
        self.assertEqual(
            str(caught.exception),
            "here: 1 problem\n  $.debug: expected an object, got the number 3",
        )
