"""Captures and imports by the command, of saved models and of dumps of torch."""

from __future__ import annotations

import contextlib
import io
import unittest
from pathlib import Path
from typing import ClassVar

import torch
import transformers
from captured_families import FAMILIES, PROMPT, CaptureCase, Family, make_model

from moe_weights.cli import main
from moe_weights.routing import load_run_bundle

TINY_OLMOE = Path(__file__).parents[2] / "examples" / "tiny_olmoe"


class TheCommand(CaptureCase):
    def run_cli(self, *arguments: object) -> tuple[int, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([str(argument) for argument in arguments])
        return code, out.getvalue()

    LINE: ClassVar[tuple[object, ...]] = ("--prompt", PROMPT, "--max-new-tokens", 5)

    def test_captures_the_example_into_a_run(self) -> None:
        line = ("capture", "--model", TINY_OLMOE, *self.LINE, "--out", self.folder)
        code, told = self.run_cli(*line)
        self.assertEqual(code, 0, told)
        run_dir = self.folder / "routing" / "capture"
        self.assertIn("8 prompt tokens, 5 generated tokens", told)
        bundle = load_run_bundle(run_dir)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(TINY_OLMOE))
        model = transformers.AutoModelForCausalLM.from_pretrained(str(TINY_OLMOE), dtype="auto")
        ids = tokenizer(PROMPT, return_tensors="pt")
        expected = model.generate(**ids, max_new_tokens=5, do_sample=False)[0].tolist()
        self.assertEqual([event["token_id"] for event in bundle["raw_events"]], expected)
        self.assertEqual(
            "".join(event["token_text"] for event in bundle["raw_events"]),
            tokenizer.decode(expected),
        )
        code, told = self.run_cli(*line)
        self.assertEqual(code, 6, told)

    def test_the_same_seed_draws_the_same_tokens(self) -> None:
        drawn = []
        for run_id in ("a", "b"):
            code, told = self.run_cli(
                "capture", "--model", TINY_OLMOE, *self.LINE, "--out", self.folder,
                "--run-id", run_id, "--temperature", 2.0, "--seed", 3,
            )  # fmt: skip
            self.assertEqual(code, 0, told)
            events = load_run_bundle(self.folder / "routing" / run_id)["raw_events"]
            drawn.append([event["token_id"] for event in events])
        self.assertEqual(drawn[0], drawn[1])

    def test_a_folder_that_is_no_model_and_a_dense_one(self) -> None:
        code, told = self.run_cli(
            "capture", "--model", self.folder, *self.LINE, "--out", self.folder / "run"
        )
        self.assertEqual(code, 5, told)
        config = transformers.LlamaConfig(
            vocab_size=98, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(self.folder / "dense")
        code, told = self.run_cli(
            "capture", "--model", self.folder / "dense", *self.LINE, "--out", self.folder / "run"
        )
        self.assertEqual(code, 2, told)
        self.assertEqual(list((self.folder / "run").rglob("*.json")), [])

    def test_a_saved_model_without_a_tokenizer(self) -> None:
        make_model("deepseek_v3", FAMILIES["deepseek_v3"]).save_pretrained(self.folder / "m")
        code, told = self.run_cli(
            "capture", "--model", self.folder / "m", *self.LINE, "--out", self.folder / "run"
        )
        self.assertEqual(code, 0, told)
        events = load_run_bundle(self.folder / "run" / "routing" / "capture")["raw_events"]
        self.assertEqual(events[0]["layers"][0]["group_limit"]["num_groups"], 2)
        self.assertEqual(events[0]["layers"][0]["not_captured"], [])

    def test_a_dump_that_torch_saved(self) -> None:
        chosen = torch.full((2, 3, 10), -1, dtype=torch.int32)
        chosen[:, :, :2] = torch.tensor([1, 3])
        record = {
            "forward_pass_id": 1, "rank": 0, "gatherer_key": "primary", "input_ids": [5, 6, 7],
            "positions": [0, 1, 2], "extend_seq_lens": [3], "forward_mode": 1,
            "topk_ids_of_layer": chosen, "misc_objects": [],
            "global_physical_count": torch.zeros(2, 4, dtype=torch.int32),
        }  # fmt: skip
        mapping = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
        path = self.folder / "dump.pt"
        torch.save({"records": [record], "last_physical_to_logical_map": mapping}, path)
        line = ("import-routing", "--format", "sglang", "--input", path, "--out", self.folder,
                "--model-id", "m", "--experts", 4, "--layers", "1,2")  # fmt: skip
        code, told = self.run_cli(*line)
        self.assertEqual(code, 0, told)
        layers = load_run_bundle(self.folder / "routing" / "sglang-import")["raw_events"][0][
            "layers"
        ]
        self.assertEqual([layer["topk_indices"] for layer in layers], [[1, 3], [2, 0]])
        torch.save({"records": [Family()]}, path)
        code, told = self.run_cli(*line, "--run-id", "unsafe")
        self.assertEqual(code, 5)
        self.assertIn("no torch file of plain tensors", told)


if __name__ == "__main__":
    unittest.main()
