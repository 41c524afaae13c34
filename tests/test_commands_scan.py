"""Which files and tensors are looked at, and what the tables say about them."""

from __future__ import annotations

import unittest
from unittest import mock

import ml_dtypes
import numpy as np

from moe_weights.commands.collect_data import usable_cpus
from tests.support.checkpoints import make_checkpoint, write_safetensors
from tests.support.command_line import (
    HIDDEN,
    WIDTH,
    CommandCase,
    expert_tensors,
    random_weights,
)

NAME = "model.layers.{}.mlp.experts.{}.{}_proj.weight"
SHARED = "model.layers.0.mlp.shared_expert.up_proj.weight"


class WalkMode(CommandCase):
    def put(self, *files: str) -> None:
        for number, file in enumerate(files):
            write_safetensors(
                self.model / file,
                {NAME.format(number, 0, "up"): random_weights(4, 32, seed=number)},
            )

    def test_is_recursive_and_sorted_by_path(self) -> None:
        self.put("b.safetensors", "a/z.safetensors", "a.safetensors", "a/y/c.safetensors")
        self.collected()
        plan = self.log("run_context.json")["scan_plan"]
        self.assertEqual(plan["scanned_files_count"], 4)
        self.assertEqual(
            plan["scanned_files_example"], ["a/y/c.safetensors", "a/z.safetensors", "a.safetensors"]
        )
        self.assertEqual(
            list(self.frame("data/tensor_inventory")["file"]),
            ["a/y/c.safetensors", "a/z.safetensors", "a.safetensors", "b.safetensors"],
        )

    def test_takes_only_the_listed_suffixes_in_their_case(self) -> None:
        self.put("a.safetensors", "b.SAFETENSORS")
        (self.model / "c.bin").write_bytes(b"")
        np.savez(self.model / "d.npz", **{NAME.format(5, 0, "up"): random_weights(4, 32, seed=9)})
        self.collected()
        self.assert_shards(["a.safetensors", "d.npz"])
        self.collected({"scan.extensions": [".npz"]})
        self.assert_shards(["d.npz"])

    def test_is_cut_to_max_files_after_sorting(self) -> None:
        self.put("c.safetensors", "a.safetensors", "b.safetensors")
        self.collected({"scan.max_files": 2})
        self.assert_shards(["a.safetensors", "b.safetensors"])
        self.assertEqual(self.log("run_context.json")["scan_plan"]["max_files"], 2)

    def test_of_a_folder_without_shards_is_an_empty_run(self) -> None:
        self.model.mkdir()
        outcome = self.collected()
        self.assertIn(
            "[collect] no expert matrix was found; see --plan and extract_rules\n", outcome.out
        )
        for name in ("tensor_inventory", "matrix_stats", "quant_sim", "unmatched_tensors"):
            frame = self.frame(f"data/{name}")
            self.assertEqual(len(frame), 0)
            self.assertGreater(len(frame.columns), 5)


class FileModelPath(CommandCase):
    def test_scans_that_file_alone(self) -> None:
        self.write_model()
        write_safetensors(self.model / "other.safetensors", expert_tensors(layer=3))
        self.collected({"model_path": str(self.model / "model.safetensors")})
        self.assert_shards(["model.safetensors"])
        plan = self.log("run_context.json")["scan_plan"]
        self.assertEqual((plan["model_path_kind"], plan["scan_mode"]), ("file", "walk"))
        self.assertEqual(self.log("run_health.json")["scan_summary"]["files_scanned"], 1)

    def test_reads_the_config_beside_it(self) -> None:
        self.write_model(config={"hidden_size": HIDDEN})
        self.collected(
            {"model_path": str(self.model / "model.safetensors"), "metadata.enabled": True}
        )
        budget = self.log("model_shape_budget.json")
        self.assertEqual(budget["config_path"], f"{self.model}/config.json")


class Override(CommandCase):
    def test_of_the_model_path_is_recorded(self) -> None:
        self.write_model()
        other = make_checkpoint(self.folder / "other", expert_tensors(n_experts=3))
        configured = {"model_path": str(self.folder / "never")}
        self.collected(configured, "--model-path", other)
        context = self.log("run_context.json")
        self.assertEqual(
            context["model_path"],
            {
                "configured": str(self.folder / "never"),
                "resolved": str(other),
                "source": "cli_override",
            },
        )
        self.assertEqual(context["cli_overrides"], {"model_path": str(other)})
        health = self.log("run_health.json")
        self.assertEqual(health["config_used"]["model_path"], str(other))
        self.assertEqual(health["run"]["model_path"], str(other))
        self.assertEqual(len(self.frame("data/matrix_stats")), 9)

    def test_may_replace_a_path_that_no_one_can_expand(self) -> None:
        self.write_model()
        self.collected({"model_path": "~nobody-of-this-name/x"}, "--model-path", self.model)
        self.assertEqual(
            self.log("run_context.json")["model_path"]["configured"], "~nobody-of-this-name/x"
        )

    def test_absent_the_config_decides(self) -> None:
        self.write_model()
        self.collected()
        context = self.log("run_context.json")
        self.assertEqual(context["model_path"]["source"], "config")
        self.assertEqual(context["cli_overrides"], {})


class Workers(unittest.TestCase):
    def test_are_as_many_as_the_cpus_that_may_be_used(self) -> None:
        with mock.patch("os.sched_getaffinity", return_value={1, 5, 7}, create=True):
            self.assertEqual(usable_cpus(), 3)
        with (
            mock.patch(
                "moe_weights.commands.collect_data.hasattr", return_value=False, create=True
            ),
            mock.patch("os.cpu_count", return_value=None),
        ):
            self.assertEqual(usable_cpus(), 1)


class Inventory(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.tensors = expert_tensors() | {
            "model.embed_tokens.weight": random_weights(10, HIDDEN).astype(ml_dtypes.bfloat16),
            "model.layers.0.mlp.experts.0.counter": np.arange(3, dtype=np.int64),
            SHARED: random_weights(WIDTH, HIDDEN, seed=5),
        }
        self.write_model(self.tensors)

    def test_has_a_row_per_tensor_also_of_integers(self) -> None:
        self.collected()
        inventory = self.frame("data/tensor_inventory")
        self.assertEqual(
            list(inventory.columns),
            ["file", "tensor_name", "dtype", "shape", "ndim", "nbytes", "role"],
        )
        self.assertEqual(list(inventory["tensor_name"]), list(self.tensors))
        rows = inventory.set_index("tensor_name")
        embed = rows.loc["model.embed_tokens.weight"]
        self.assertEqual(
            (embed["dtype"], list(embed["shape"]), embed["ndim"], embed["nbytes"]),
            ("bfloat16", [10, HIDDEN], 2, 20 * HIDDEN),
        )
        self.assertEqual(rows.loc["model.layers.0.mlp.experts.0.counter"]["dtype"], "int64")
        self.assertEqual(set(rows["file"]), {"model.safetensors"})

    def test_of_experts_only_when_not_of_everything(self) -> None:
        self.collected({"scan.inventory_all_tensors": False})
        names = set(self.frame("data/tensor_inventory")["tensor_name"])
        self.assertEqual(
            names,
            set(self.tensors) - {"model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"},
        )
        self.assertEqual(
            self.log("run_health.json")["scan_summary"]["tensors_observed"], len(self.tensors)
        )
        self.collected({"scan.inventory_all_tensors": False, "scan.include_shared_expert": False})
        self.assertNotIn(SHARED, set(self.frame("data/tensor_inventory")["tensor_name"]))

    def test_in_csv_holds_shapes_as_json(self) -> None:
        self.collected({"output.format": "csv"})
        text = (self.path / "data" / "tensor_inventory.csv").read_text(encoding="utf-8")
        self.assertIn(f'"[10, {HIDDEN}]"', text)


class ExpertFilter(CommandCase):
    DENSE = "model.layers.0.mlp.up_proj.weight"
    ODD = "model.layers.0.mlp.experts.0.odd.weight"

    def setUp(self) -> None:
        super().setUp()
        self.write_model(
            expert_tensors()
            | {
                SHARED: random_weights(WIDTH, HIDDEN, seed=5),
                self.DENSE: random_weights(WIDTH, HIDDEN, seed=6),
                self.ODD: random_weights(WIDTH, HIDDEN, seed=7),
            }
        )

    def measured(self) -> set[str]:
        return set(self.frame("data/matrix_stats")["source_tensor"])

    def test_on_measures_routed_and_shared_experts(self) -> None:
        self.collected()
        self.assertEqual(
            self.measured(), set(expert_tensors()) - {"model.layers.0.mlp.gate.weight"} | {SHARED}
        )
        self.assertEqual(
            list(self.frame("data/unmatched_tensors").columns),
            ["file", "tensor_name", "dtype", "shape", "ndim", "reason"],
        )
        self.assertEqual(list(self.frame("data/unmatched_tensors")["tensor_name"]), [self.ODD])
        shared = self.frame("data/matrix_stats").set_index("source_tensor").loc[SHARED]
        self.assertEqual(
            (shared["expert_id"], shared["is_routed_expert"], shared["is_shared_expert"]),
            (-1, False, True),
        )
        self.assertEqual(
            self.log("run_health.json")["extraction_summary"]["unmatched_expertish"], 1
        )

    def test_can_leave_out_shared_experts(self) -> None:
        self.collected({"scan.include_shared_expert": False})
        self.assertNotIn(SHARED, self.measured())

    def test_off_measures_dense_matrices_too_and_counts_nothing_unmatched(self) -> None:
        self.collected({"scan.experts_only": False, "scan.include_shared_expert": False})
        self.assertLessEqual({SHARED, self.DENSE}, self.measured())
        self.assertNotIn("model.layers.0.mlp.gate.weight", self.measured())
        self.assertEqual(len(self.frame("data/unmatched_tensors")), 0)
        health = self.log("run_health.json")
        self.assertEqual(health["extraction_summary"]["unmatched_expertish"], 0)
        self.assertEqual(health["tensor_name_examples"]["unmatched_expertish"], [])

    def test_unmatched_tensors_are_not_dumped_unless_asked(self) -> None:
        self.collected()
        self.assertIn("data/unmatched_tensors.parquet", self.files("data"))
        outcome = self.collected({"debug.dump_unmatched_tensors": False})
        self.assertNotIn("data/unmatched_tensors.parquet", self.files("data"))
        self.assertNotIn("unmatched_tensors rows", outcome.out)
        written = self.log("run_health.json")["outputs_written"]
        self.assertEqual(
            (written["wrote_unmatched_tensors"], written["unmatched_tensors_rows"]), (False, 0)
        )
        self.assertNotIn("unmatched_tensors", self.log("write_manifest.json")["artifacts"])


class MatrixRows(CommandCase):
    def test_stand_in_a_fixed_order_and_name_files_relative_to_the_model(self) -> None:
        for layer, file in ((1, "a/x.safetensors"), (0, "b/y.safetensors")):
            write_safetensors(self.model / file, expert_tensors(layer=layer))
        self.collected()
        rows = self.frame("data/matrix_stats")
        self.assertEqual(
            list(rows.columns[:12]),
            [
                "file", "source_tensor", "derived_tensor", "layer", "block4", "proj", "expert_id",
                "is_routed_expert", "is_shared_expert", "rows", "cols", "dtype",
            ],
        )  # fmt: skip
        self.assertEqual(
            list(zip(rows["layer"], rows["proj"], rows["expert_id"], strict=True)),
            [
                (layer, proj, expert)
                for layer in (0, 1)
                for proj in ("gate_proj", "up_proj", "down_proj")
                for expert in (0, 1)
            ],
        )
        self.assertEqual(set(rows["file"]), {"a/x.safetensors", "b/y.safetensors"})

    def test_are_the_same_whatever_the_sharding(self) -> None:
        tensors = expert_tensors() | expert_tensors(layer=1)
        frames = []
        for n_shards in (1, 3):
            model = make_checkpoint(self.folder / str(n_shards), tensors, n_shards=n_shards)
            self.collected({"model_path": str(model)}, "--workers", n_shards)
            frames.append(self.frame("data/matrix_stats").drop(columns="file"))
        self.assertTrue(frames[0].equals(frames[1]))


if __name__ == "__main__":
    unittest.main()
