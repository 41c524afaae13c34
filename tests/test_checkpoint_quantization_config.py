from __future__ import annotations

import json
import os
import unittest
from typing import Any

from moe_weights.checkpoint.quantization_config import find_quantization
from moe_weights.errors import CheckpointError
from tests.support.runs import temporary_folder

BLOCK: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
OTHER: dict[str, Any] = {"quant_method": "awq"}


class Quantization(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)

    def write_beside(self, text: str) -> None:
        (self.folder / "hf_quant_config.json").write_text(text, encoding="utf-8")

    def test_stands_under_one_of_three_keys(self) -> None:
        for key in ("quantization_config", "quantization", "compression_config"):
            with self.subTest(key=key):
                self.assertEqual(find_quantization(self.folder, {key: BLOCK}), BLOCK)

    def test_may_stand_in_the_part_about_text(self) -> None:
        for part in ("text_config", "language_config"):
            with self.subTest(part=part):
                config: dict[str, Any] = {part: {"quantization_config": BLOCK}}
                self.assertEqual(find_quantization(self.folder, config), BLOCK)

    def test_at_the_top_wins_over_a_part(self) -> None:
        config: dict[str, Any] = {
            "quantization_config": BLOCK,
            "text_config": {"quantization_config": OTHER},
        }
        self.assertEqual(find_quantization(self.folder, config), BLOCK)

    def test_that_says_nothing_does_not_hide_another(self) -> None:
        config: dict[str, Any] = {
            "quantization_config": {},
            "quantization": None,
            "text_config": "odd",
            "language_config": {"quantization": OTHER},
        }
        self.assertEqual(find_quantization(self.folder, config), OTHER)

    def test_of_modelopt_lies_in_a_file_of_its_own(self) -> None:
        self.write_beside(json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}}))
        self.assertEqual(
            find_quantization(self.folder, {"hidden_size": 64}),
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
        )
        self.assertEqual(find_quantization(self.folder, {"quantization_config": BLOCK}), BLOCK)

    def test_is_empty_where_no_file_has_any(self) -> None:
        self.assertEqual(find_quantization(self.folder, {}), {})
        for text in ("[]", "{}", '{"quantization": 3}'):
            with self.subTest(text=text):
                self.write_beside(text)
                self.assertEqual(find_quantization(self.folder, {}), {})

    def test_in_a_file_that_cannot_be_read_is_refused(self) -> None:
        path = self.folder / "hf_quant_config.json"
        how_to_fix = (
            "\n  how to fix: download the file again; remove it only if no weight is quantised"
        )
        for encoded, cause in (
            (b'{"quantization": {', "it is not JSON (Expecting property name enclosed in double "),
            (b"[" * 100_000, "it is not usable JSON (nested too deeply)"),
            (b"\xff\xfe", "it is not UTF-8 text (byte 0)"),
            (b"version https://git-lfs.github.com/spec/v1\n", "it is a git-LFS pointer, not the "),
        ):
            path.write_bytes(encoded)
            with self.assertRaises(CheckpointError) as caught:
                find_quantization(self.folder, {})
            message = str(caught.exception)
            self.assertTrue(message.startswith(f"hf_quant_config.json: {cause}"), message)
            self.assertTrue(message.endswith(how_to_fix), message)
            block = find_quantization(self.folder, {"quantization_config": BLOCK})
            self.assertEqual(block, BLOCK)
        for put, cause in (
            (path.mkdir, "it cannot be read (Is a directory)"),
            (lambda: os.mkfifo(path), "it cannot be read (it is a named pipe and no regular file)"),
            (lambda: path.symlink_to("nowhere"), "it is a link to nothing"),
        ):
            path.rmdir() if path.is_dir() else path.unlink()
            put()
            with self.assertRaises(CheckpointError) as caught:
                find_quantization(self.folder, {})
            self.assertEqual(str(caught.exception), f"hf_quant_config.json: {cause}{how_to_fix}")

    def test_is_not_looked_for_when_config_json_is_not_used(self) -> None:
        self.write_beside(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
        self.assertEqual(find_quantization(self.folder, None), {})


if __name__ == "__main__":
    unittest.main()
