"""`collect-data --plan`: what would be done, from headers alone."""

from __future__ import annotations

import json
import time
import unittest
from unittest import mock

import ml_dtypes
import numpy as np

from moe_weights.checkpoint import tensor_reader
from moe_weights.quantize.mlx_backend import MlxBackend
from tests.support.checkpoints import entry, raw_safetensors, write_safetensors
from tests.support.command_line import CommandCase, expert_tensors, random_weights, tree

BANK = "model.layers.{}.mlp.experts.{}.weight"


class PlanCase(CommandCase):
    def plan(self, *arguments: object, **changes: object) -> str:
        """Plan, which must succeed and change nothing; return the output."""
        self.configure(changes)
        before = tree(self.folder)
        outcome = self.collect("--plan", *arguments)
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertEqual(tree(self.folder), before)
        return outcome.out

    def cells(self, output: str) -> list[list[str]]:
        """Return the body rows of all tables."""
        return [
            [cell.strip() for cell in line.strip("│").split("│")]
            for line in output.splitlines()
            if line.startswith("│")
        ]


class Plan(PlanCase):
    def test_shows_what_will_be_measured_and_how_it_was_matched(self) -> None:
        tensors = expert_tensors(n_experts=3) | expert_tensors(layer=2)
        shared = "model.layers.0.mlp.shared_expert.gate_proj.weight"
        tensors[shared] = random_weights(16, 64).astype(ml_dtypes.bfloat16)
        tensors[BANK.format(5, "up_proj")] = random_weights(4, 16, 64)
        self.write_model(tensors)
        output = self.plan()
        two_d, three_d = (
            "rule:generic_2d_per_expert_separate",
            "rule:generic_3d_expert_bank_separate",
        )
        self.assertEqual(
            self.cells(output),
            [
                ["", "gate_proj", "0,2", "0-2", "5", "32", "64", "float32", "plain", two_d, "rule"],
                [
                    "", "gate_proj", "0", "shared", "1", "16", "64", "bfloat16", "plain",
                    "fallback", "convention",
                ],
                ["", "up_proj", "5", "0-3", "4", "16", "64", "float32", "plain", three_d, "rule"],
                ["", "up_proj", "0,2", "0-2", "5", "32", "64", "float32", "plain", two_d, "rule"],
                ["", "down_proj", "0,2", "0-2", "5", "64", "32", "float32", "plain", two_d, "rule"],
            ],
        )  # fmt: skip
        lines = output.splitlines()
        self.assertEqual(lines[0], f"[collect] plan for {self.model}")
        self.assertEqual(lines[1], "[collect] 1 files (walk mode), 19 tensors")
        self.assertEqual(lines[2], "[collect] preset: none")
        self.assertEqual(
            lines[-2],
            "[collect] coverage unknown: config.json declares no experts to hold the tensors "
            "against",
        )
        self.assertEqual(
            lines[-1],
            "[collect] 20 matrices in 17 units, 138.0 KiB of weights to read; 0 expert-looking "
            "tensors unmatched; no weight was read",
        )

    def test_shows_unmatched_tensors_with_their_reasons(self) -> None:
        side = "model.layers.0.mlp.experts.0.gate_proj.weight_scale_inv"
        odd = "model.layers.0.mlp.experts.0.odd.weight"
        self.write_model(
            expert_tensors() | {side: random_weights(1, 1), odd: random_weights(2, 32)}
        )
        output = self.plan()
        self.assertIn(
            "will not be measured (no_rule_match_or_proj_infer: 1, side_tensor: 1)", output
        )
        self.assertEqual(
            self.cells(output)[-2:],
            [
                [side, "[1, 1]", "float32", "side_tensor"],
                [odd, "[2, 32]", "float32", "no_rule_match_or_proj_infer"],
            ],
        )

    def test_lists_twenty_unmatched_tensors_and_counts_the_rest(self) -> None:
        self.write_model({f"experts.{n:02d}.odd": random_weights(2, 2, seed=n) for n in range(25)})
        rows = self.cells(self.plan())
        self.assertEqual(len(rows), 21)
        self.assertEqual(rows[-1], ["... and 5 more", "", "", ""])

    def test_shows_warnings_with_their_hints(self) -> None:
        self.write_model()
        output = self.plan(**{"scan.max_file": 1})
        self.assertIn(
            '[warn] [config] unknown key: scan.max_file\n       hint: did you mean "max_files"?\n',
            output,
        )

    def test_shows_an_unknown_layer_or_expert_as_a_question_mark(self) -> None:
        self.write_model({"experts.up_proj.weight": random_weights(8, 64)})
        self.assertEqual(self.cells(self.plan())[0][2:4], ["?", "?"])

    def test_names_the_stack_where_there_are_several(self) -> None:
        shape = (8, 64)
        self.write_model(
            {
                "decoder.layers.0.mlp.experts.0.up_proj.weight": random_weights(*shape),
                "encoder.layers.3.mlp.experts.0.up_proj.weight": random_weights(*shape, seed=1),
                "encoder.layers.3.mlp.experts.1.up_proj.weight": random_weights(*shape, seed=2),
            }
        )
        self.assertEqual(
            [row[:5] for row in self.cells(self.plan())],
            [["decoder", "up_proj", "0", "0", "1"], ["encoder", "up_proj", "3", "0-1", "2"]],
        )

    def test_names_the_encoding_and_counts_what_lies_beside_the_codes(self) -> None:
        name = "model.layers.0.mlp.experts.0.up_proj.weight"
        self.write_model(
            {
                name: np.ones((128, 256), ml_dtypes.float8_e4m3fn),
                f"{name}_scale_inv": np.ones((1, 2), np.float32),
            }
        )
        output = self.plan()
        self.assertEqual(
            self.cells(output)[0][5:],
            [
                "128", "256", "float8_e4m3fn", "fp8", "rule:generic_2d_per_expert_separate",
                "rule",
            ],
        )  # fmt: skip
        self.assertIn("1 matrices in 1 units, 32.0 KiB of weights to read", output)

    def test_shows_preset_evidence_and_verdict(self) -> None:
        config = {
            "model_type": "mixtral",
            "hidden_size": 64,
            "intermediate_size": 32,
            "num_local_experts": 2,
            "num_hidden_layers": 1,
        }
        prefix = "model.layers.0.block_sparse_moe"
        self.write_model(
            {
                f"{prefix}.experts.{expert}.{word}.weight": random_weights(*shape, seed=expert)
                for expert in range(2)
                for word, shape in (("w1", (32, 64)), ("w2", (64, 32)), ("w3", (32, 64)))
            }
            | {f"{prefix}.gate.weight": random_weights(2, 64)},
            config=config,
        )
        output = self.plan(**{"metadata.enabled": True})
        self.assertEqual(
            self.cells(output),
            [
                [
                    "", proj, "0", "0-1", "2", str(rows), str(cols), "float32", "plain",
                    "preset:mixtral", "config",
                ]
                for proj, rows, cols in (
                    ("gate_proj", 32, 64),
                    ("up_proj", 32, 64),
                    ("down_proj", 64, 32),
                )
            ],
        )  # fmt: skip
        self.assertIn("[collect] preset: mixtral\n", output)
        self.assertIn("[collect] coverage complete: ", output)

    def test_takes_names_as_they_are(self) -> None:
        names = ["experts.0.[bold]odd[/bold].weight", "experts.1.[/nothing].weight",
                 "experts.2.\x1b[31mred.weight", "experts.3.:smile:.weight"]  # fmt: skip
        self.write_model({name: random_weights(2, 2, seed=n) for n, name in enumerate(names)})
        output = self.plan()
        self.assertEqual(
            [row[0] for row in self.cells(output)],
            [names[0], names[1], r"experts.2.\x1b[31mred.weight", names[3]],
        )
        self.assertNotIn("\x1b", output)

    def test_is_silent_when_asked_and_still_refuses(self) -> None:
        self.write_model()
        self.assertEqual(self.plan("--quiet"), "")
        self.write_model({"experts.0.up_proj.weight": np.zeros((8, 8), ml_dtypes.float8_e5m2)})
        self.assertIn("nothing can be measured", self.refused(4, None, "--quiet", "--plan"))

    def test_honours_the_override(self) -> None:
        self.configure({"model_path": "/nowhere"})
        self.write_model()
        outcome = self.collect("--plan", "--model-path", self.model)
        self.assertEqual(outcome.code, 0)
        self.assertIn(f"[collect] plan for {self.model}\n", outcome.out)


class NoWeightIsRead(PlanCase):
    def test_of_a_file_whose_values_are_a_hole_of_a_terabyte(self) -> None:
        n_experts, shape = 2**10, [2**14, 2**15]
        nbytes = 2 * shape[0] * shape[1]
        header = {
            f"model.layers.0.mlp.experts.{n}.up_proj.weight": entry(
                "BF16", shape, n * nbytes, (n + 1) * nbytes
            )
            for n in range(n_experts)
        }
        self.model.mkdir()
        path = self.model / "model.safetensors"
        content = raw_safetensors(header)
        path.write_bytes(content)
        try:
            with path.open("rb+") as stream:
                stream.truncate(len(content) + n_experts * nbytes)
        except OSError as error:
            self.skipTest(f"no sparse files here: {error}")
        self.configure()
        outcome = self.collect("--plan")
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertIn("1.0 TiB of weights to read", outcome.out)

    def test_nor_one_byte_of_any_tensor(self) -> None:
        self.write_model(n_shards=2, index=True, config={"hidden_size": 64})
        np.savez(self.model / "more.npz", **{"experts.9.up_proj.weight": random_weights(64, 64)})
        with (
            mock.patch.object(tensor_reader, "open_descriptor", side_effect=AssertionError),
            mock.patch.object(MlxBackend, "__init__", side_effect=AssertionError),
            mock.patch("moe_weights.commands.collect_data.RunLock", side_effect=AssertionError),
        ):
            self.plan(**{"mlx.enabled": True})

    def test_and_refusals_come_before_the_first_byte_of_a_real_run_too(self) -> None:
        name = BANK.format(0, "gate_up_proj")
        self.write_model(expert_tensors() | {name: random_weights(2, 8, 64)})
        rule = {
            "name": "fused",
            "match": ".*gate_up_proj",
            "layout": {"expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
            "packed_split": {"axis": "rows", "splits": [9], "projs": ["gate_proj"]},
        }
        with mock.patch.object(tensor_reader, "open_descriptor", side_effect=AssertionError):
            self.refused(4, {"extract_rules": [rule]})


class LargePlan(PlanCase):
    def test_of_many_tensors_comes_in_seconds(self) -> None:
        n_shards, per_shard = 10, 2000
        weight_map = {}
        self.model.mkdir()
        for shard in range(n_shards):
            header = {}
            for place in range(per_shard):
                layer, expert = divmod(shard * per_shard + place, 500)
                name = f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
                header[name] = entry("BF16", [2, 2], 8 * place, 8 * place + 8)
                weight_map[name] = f"{shard}.safetensors"
            path = self.model / f"{shard}.safetensors"
            path.write_bytes(raw_safetensors(header, bytes(8 * per_shard)))
        index = self.model / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        self.configure()
        started = time.monotonic()
        outcome = self.collect("--plan")
        seconds = time.monotonic() - started
        self.assertEqual(outcome.code, 0)
        self.assertIn("20000 matrices in 20000 units, 156.2 KiB", outcome.out)
        self.assertLess(seconds, 60)  # a guard against anything quadratic, no benchmark


class PlanBesideARun(PlanCase):
    def test_needs_no_lock(self) -> None:
        self.write_model()
        self.collected()
        write_safetensors(self.model / "more.safetensors", expert_tensors(layer=1))
        self.assertIn("12 matrices", self.plan())


if __name__ == "__main__":
    unittest.main()
