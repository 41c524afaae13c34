"""The ledger: config.json held against the plan."""

from __future__ import annotations

from moe_weights.extract.coverage import CoverageEntry, CoverageStatus
from tests.support.extraction import make_header, make_preset, make_rule, plan_headers, rules
from tests.support.ledgers import CONFIG, SHAPES, LedgerCase, experts, name_of

STACKS = ("thinker", "talker")


class Complete(LedgerCase):
    def test_is_every_expert_of_every_layer_once_with_its_shape(self) -> None:
        coverage = self.plan(experts()).coverage
        self.assertIs(coverage.complete, True)
        self.assertEqual(coverage.problems, [])
        self.assertEqual(
            coverage.entries[2],
            CoverageEntry(
                stack="text",
                layer=0,
                proj="down_proj",
                expected_experts=2,
                found_experts=2,
                expected_shape=(8, 6),
                found_shape=(8, 6),
                status=CoverageStatus.COMPLETE,
            ),
        )
        self.assertEqual(
            [(entry.layer, entry.proj) for entry in coverage.entries],
            [(layer, proj) for layer in (0, 1) for proj in SHAPES],
        )

    def test_is_also_what_has_no_gate_anywhere(self) -> None:
        self.assertIs(self.plan(experts(projs=["up_proj", "down_proj"])).coverage.complete, True)

    def test_is_also_what_lies_in_banks(self) -> None:
        tensors = {
            f"model.layers.{layer}.mlp.experts.{proj}.weight": (2, *shape)
            for layer in (0, 1)
            for proj, shape in SHAPES.items()
        }
        self.assertIs(self.plan(tensors).coverage.complete, True)

    def test_sorts_layers_as_numbers(self) -> None:
        plan = self.plan(experts(layers=range(11)), CONFIG | {"num_hidden_layers": 11})
        layers = [entry.layer for entry in plan.coverage.entries]
        self.assertEqual(layers, sorted(layers))
        self.assertIs(plan.coverage.complete, True)

    def test_does_not_ask_for_experts_in_dense_layers(self) -> None:
        config = CONFIG | {"mlp_only_layers": [0]}
        self.assertIs(self.plan(experts(layers=[1]), config).coverage.complete, True)

    def test_is_unhurt_by_look_alikes_excluded_and_shared_experts(self) -> None:
        mlp = "model.layers.0.mlp"
        extra = {
            f"{mlp}.shared_expert.up_proj.weight": (24, 8),
            f"{mlp}.shared_expert_gate.weight": (1, 8),
            f"{mlp}.experts.e_score_correction_bias": (2,),
        }
        for changes in ({}, {"scan.include_shared_expert": False}):
            plan = self.plan(experts() | extra, changes=changes)
            self.assertIs(plan.coverage.complete, True)

    def test_counts_experts_by_layer_where_config_json_does(self) -> None:
        config = CONFIG | {"num_experts": [2, 4]}
        tensors = {**experts(layers=[0]), **experts(layers=[1], n_experts=4)}
        plan = self.plan(tensors, config)
        self.assertIs(plan.coverage.complete, True)
        self.assertEqual([entry.expected_experts for entry in plan.coverage.entries][::3], [2, 4])

    def test_knows_ids_of_different_width_in_one_layer(self) -> None:
        config = {
            "model_type": "ernie4_5_vl_moe",
            "moe_num_experts": 1,
            "moe_intermediate_size": [6, 4],
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "mlp_layer_types": ["sparse"],
        }
        tensors = {
            name_of(0, expert, proj): (8, width) if proj == "down_proj" else (width, 8)
            for expert, width in ((0, 6), (1, 4))
            for proj in SHAPES
        }
        self.assertIs(self.plan(tensors, config).coverage.complete, True)
        swapped = {
            name: (8, 4 if ".0.down" in name else 6) if "down" in name else shape
            for name, shape in tensors.items()
        }
        self.assert_incomplete(self.plan(swapped, config), {"0 down_proj": "wrong_shape"})


class Missing(LedgerCase):
    def test_is_a_layer_an_expert_or_a_projection_that_is_not_there(self) -> None:
        self.assert_incomplete(
            self.plan(experts(layers=[0])), {f"1 {proj}": "missing" for proj in SHAPES}
        )
        tensors = experts()
        del tensors[name_of(1, 1, "up_proj")]
        self.assert_incomplete(self.plan(tensors), {"1 up_proj": "missing"})
        tensors = {n: s for n, s in experts().items() if "layers.1" not in n or "gate" not in n}
        self.assert_incomplete(self.plan(tensors), {"1 gate_proj": "missing"})

    def test_is_everything_where_nothing_was_found(self) -> None:
        plan = self.plan({"model.norm.weight": (8,)})
        self.assert_incomplete(
            plan, {f"{layer} {proj}": "missing" for layer in (0, 1) for proj in SHAPES}
        )
        self.assertEqual({entry.found_shape for entry in plan.coverage.entries}, {None})

    def test_is_an_id_within_the_count_although_another_one_is_there_beyond_it(self) -> None:
        tensors = experts()
        tensors[name_of(0, 7, "up_proj")] = tensors.pop(name_of(0, 1, "up_proj"))
        self.assert_incomplete(self.plan(tensors), {"0 up_proj": "missing"})


class Extra(LedgerCase):
    def test_is_an_id_beyond_the_count(self) -> None:
        tensors = {**experts(), name_of(0, 2, "up_proj"): (6, 8)}
        self.assert_incomplete(self.plan(tensors), {"0 up_proj": "extra"})

    def test_is_one_expert_twice(self) -> None:
        again = make_header(name_of(0, 1, "up_proj"), (6, 8), file="model-9.safetensors")
        self.assert_incomplete(self.plan(experts(), more=[again]), {"0 up_proj": "extra"})

    def test_is_one_expert_twice_also_where_config_json_says_nothing(self) -> None:
        twice = [
            make_header(f"{prefix}layers.0.mlp.experts.{expert}.gate_proj.weight", (6, 8))
            for prefix in ("model.", "draft.model.")
            for expert in (0, 1)
        ]
        self.assertEqual(self.statuses(plan_headers(twice)), {"0 gate_proj": "extra"})
        without_layers = [
            make_header(f"{prefix}.experts.{expert}.gate_proj.weight", (6, 8))
            for prefix in ("x.a", "x.b")
            for expert in (0, 1)
        ]
        self.assertEqual(self.statuses(plan_headers(without_layers)), {"-1 gate_proj": "unknown"})

    def test_is_a_bank_with_padding(self) -> None:
        tensors = {
            f"model.layers.{layer}.mlp.experts.{proj}.weight": (3, *shape)
            for layer in (0, 1)
            for proj, shape in SHAPES.items()
        }
        plan = self.plan(tensors)
        self.assertEqual(set(self.statuses(plan).values()), {"extra"})
        self.assertIs(plan.coverage.complete, False)


class WrongShape(LedgerCase):
    def test_is_a_shape_that_config_json_does_not_give(self) -> None:
        tensors = experts() | {name_of(0, 1, "up_proj"): (8, 6)}
        plan = self.plan(tensors)
        self.assert_incomplete(plan, {"0 up_proj": "wrong_shape"})
        (entry,) = plan.coverage.problems
        self.assertEqual((entry.expected_shape, entry.found_shape), ((6, 8), None))

    def test_is_not_held_against_several_widths_or_unknown_sizes(self) -> None:
        for changed in ({"hidden_size": None}, {"moe_intermediate_size": None}):
            config = {k: v for k, v in (CONFIG | changed).items() if v is not None}
            plan = self.plan(experts() | {name_of(0, 1, "up_proj"): (6, 8)}, config)
            self.assertEqual(self.statuses(plan), {})
            self.assertEqual({entry.expected_shape for entry in plan.coverage.entries}, {None})

    def test_is_not_asked_of_projections_of_other_names(self) -> None:
        name = "model.layers.0.mlp.experts.{}.linear.weight"
        tensors = {name.format(expert): (5, 5) for expert in (0, 1)}
        rule = make_rule(r".*experts\.\d+\.(linear)", proj_group=1)
        plan = self.plan(tensors, CONFIG | {"num_hidden_layers": 1}, rules(rule))
        self.assertEqual([(e.proj, str(e.status), e.expected_shape) for e in plan.coverage.entries],
                         [("linear", "complete", None)])  # fmt: skip


class Claims(LedgerCase):
    """config.json may claim anything; a verdict takes time and memory for what is there."""

    def test_of_a_billion_experts_are_no_billion_numbers(self) -> None:
        plan = self.plan(experts(), CONFIG | {"num_experts": 10**18})
        self.assertEqual(set(self.statuses(plan).values()), {"missing"})

    def test_of_many_layers_are_judged_one_by_one(self) -> None:
        n_layers = 30_000
        config = CONFIG | {
            "num_hidden_layers": n_layers,
            "num_experts": [2, 4] * (n_layers // 2),
            "mlp_only_layers": list(range(0, n_layers, 2)),
        }
        coverage = self.plan(experts((1,), n_experts=4), config).coverage
        self.assertEqual(len(coverage.entries), 3 * n_layers // 2)
        self.assertEqual(coverage.entries[0].status, "complete")


class NotExpected(LedgerCase):
    def test_are_experts_in_a_layer_that_has_none(self) -> None:
        config = CONFIG | {"mlp_only_layers": [1]}
        self.assert_incomplete(
            self.plan(experts(), config), {f"1 {proj}": "not_expected" for proj in SHAPES}
        )


class Unknown(LedgerCase):
    def test_is_everything_without_a_config_json_and_the_verdict_too(self) -> None:
        plan = self.plan(experts(layers=[0]), {})
        self.assertIsNone(plan.coverage.complete)
        self.assertEqual(self.statuses(plan), {f"0 {proj}": "unknown" for proj in SHAPES})
        self.assertEqual(plan.coverage.problems, [])

    def test_is_a_stack_that_config_json_does_not_describe(self) -> None:
        tensors = experts() | {
            f"encoder.layers.0.mlp.experts.0.{proj}.weight": shape for proj, shape in SHAPES.items()
        }
        plan = self.plan(tensors)
        self.assertEqual(self.statuses(plan), {f"0 {proj}": "unknown" for proj in SHAPES})
        unknown = {e.stack for e in plan.coverage.entries if e.status == "unknown"}
        self.assertEqual(unknown, {"encoder"})
        self.assertIs(plan.coverage.complete, True)

    def test_is_a_count_that_config_json_leaves_open(self) -> None:
        plan = self.plan(experts(), CONFIG | {"num_experts": "many"})
        self.assertEqual(set(self.statuses(plan).values()), {"unknown"})
        self.assertIsNone(plan.coverage.complete)

    def test_count_of_one_stack_leaves_the_whole_unknown(self) -> None:
        part = {key: value for key, value in CONFIG.items() if key != "model_type"}
        config = {"thinker_config": part, "talker_config": part | {"num_experts": "many"}}
        tensors = {
            f"{stack}.{name}": shape for name, shape in experts().items() for stack in STACKS
        }
        plan = self.plan(tensors, config)
        statuses = {(entry.stack, str(entry.status)) for entry in plan.coverage.entries}
        self.assertEqual(statuses, {("thinker", "complete"), ("talker", "unknown")})
        self.assertIsNone(plan.coverage.complete)

    def test_layers_and_nothing_found_are_not_complete(self) -> None:
        config = {key: value for key, value in CONFIG.items() if key != "num_hidden_layers"}
        plan = self.plan({"model.norm.weight": (8,)}, config)
        self.assertEqual(plan.coverage.entries, ())
        self.assertIs(plan.coverage.complete, False)

    def test_layers_leave_what_was_found_to_be_judged_by_count_and_the_whole_unknown(self) -> None:
        config = {key: value for key, value in CONFIG.items() if key != "num_hidden_layers"}
        plan = self.plan(experts(layers=[5]), config)
        self.assertEqual(self.statuses(plan), {})
        self.assertIsNone(plan.coverage.complete)


class ProjectionsOfAPreset(LedgerCase):
    def test_are_what_an_expert_consists_of(self) -> None:
        preset = make_preset(
            make_rule(r".*experts\.(\d+)\.(up|down)_proj", expert_group=1), name="p"
        )
        plan = self.plan(experts(projs=["up_proj", "down_proj"]), preset=preset)
        self.assertIs(plan.coverage.complete, True)
