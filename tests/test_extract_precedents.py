from __future__ import annotations

import itertools
import unittest
from typing import Any
from unittest import mock

from moe_weights.checkpoint.name_ids import without_ids
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.preset import find_preset, load_presets
from moe_weights.extract.plan import ExtractionPlan
from moe_weights.extract.precedents import Precedents
from moe_weights.extract.tensor_planner import TensorPlanner
from tests.support.extraction import make_header, make_preset, make_rule, plan_headers
from tests.support.one_by_one import one_by_one

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

# Three layers, four experts, two ids of experts without weights; MTP from layer 3 on.
MODEL = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
IDENTITY_MODEL = {**MODEL, "zero_expert_num": 2}
IDS = ("0", "1", "2", "3", "5", "17", "00", "007", "999999999", "1000000000", "٣", "1a")
TEMPLATES = (
    "model.layers.{a}.mlp.experts.{b}.gate_proj.weight",
    "model.layers.{a}.mlp.experts.{b}.down_proj.weight",
    "model.layers.{a}.mlp.experts.{b}.w1.weight",
    "model.layers.{a}.mlp.experts.{b}.gate_up_proj.weight",
    "model.layers.{a}.mlp.experts.w{b}.weight",
    "model.layers.{a}.mlp.shared_experts.{b}.up_proj.weight",
    "model.layers.{a}.mlp.gate.weight",
    "model.layers.{a}.self_attn.q_proj.weight",
    "blocks.block3.experts.{b}.up_proj.{a}",
    "{a}.experts.{b}.up_proj",
    "mtp.layers.{a}.experts.{b}.w3",
)
SHAPES = ((32, 64), (64, 32), (64, 64), (4, 32, 64), (0, 64))
COMPANIONS = ("weight_scale_inv", "weight_scale", "scales", "weight_zero_point", "bias")


def plan_both(
    headers: list[TensorHeader], *args: Any, **options: Any
) -> tuple[ExtractionPlan, ExtractionPlan]:
    """Return the plan and the one made without any short way."""
    with one_by_one():
        slow = plan_headers(headers, *args, **options)
    return plan_headers(headers, *args, **options), slow


class PlanCase(unittest.TestCase):
    def assert_same(
        self, headers: list[TensorHeader], *args: Any, **options: Any
    ) -> ExtractionPlan:
        fast, slow = plan_both(headers, *args, **options)
        self.assertEqual([str(e) for e in fast.strict_errors], [str(e) for e in slow.strict_errors])
        for name in ExtractionPlan.__slots__:
            if name != "strict_errors":
                self.assertEqual(getattr(fast, name), getattr(slow, name), name)
        return fast

    def n_covered(self, headers: list[TensorHeader], *args: Any, **options: Any) -> int:
        """Return how many tensors no planner was asked about."""
        asked = mock.Mock(wraps=None)
        plan = TensorPlanner.plan

        def note(planner: TensorPlanner, tensor: Any) -> Any:
            asked()
            return plan(planner, tensor)

        with mock.patch.object(TensorPlanner, "plan", note):
            plan_headers(headers, *args, **options)
        return len(headers) - asked.call_count


class EveryPreset(PlanCase):
    def test_plans_its_examples_with_other_ids_as_one_by_one(self) -> None:
        for preset in load_presets():
            tensors = [
                make_header(name, example.shape, file=f"{file}.safetensors")
                for file, example in enumerate(preset.examples)
                if example.encoding == "plain"
                for name in self.with_other_ids(example.tensor)
            ]
            with self.subTest(preset=preset.name):
                self.assert_same(tensors, preset=preset, model_config=preset.config)

    def test_decides_about_each_kind_once(self) -> None:
        preset = find_preset("deepseek_v3")
        names = [TEMPLATES[0].format(a=a, b=b) for a in range(3) for b in range(4)]
        headers = [make_header(name, (96, 64)) for name in names]
        options = {"preset": preset, "model_config": preset.config}
        self.assertEqual(self.n_covered(headers, **options), 11)

    def with_other_ids(self, name: str) -> list[str]:
        pieces = without_ids(name).split(".0")
        ids = itertools.product(("0", "1", "2", "60"), repeat=min(len(pieces) - 1, 2))
        names = []
        for some in ids:
            full = [*some, *("1" for _ in range(len(pieces) - 1 - len(some)))]
            names.append(
                "".join(f"{p}.{i}" for p, i in zip(pieces, full, strict=False)) + pieces[-1]
            )
        return list(dict.fromkeys(names))


class Ids(PlanCase):
    def headers(self, *ids: tuple[str, str], template: str = TEMPLATES[0]) -> list[TensorHeader]:
        return [
            make_header(template.format(a=a, b=b), (32, 64), offset=4096 * place)
            for place, (a, b) in enumerate(ids)
        ]

    def test_with_leading_zeros_are_numbers(self) -> None:
        plan = self.assert_same(self.headers(("1", "2"), ("01", "007")), model_config=MODEL)
        self.assertEqual([(m.layer, m.expert_id) for m in plan.matrices], [(1, 2), (1, 7)])

    def test_of_more_than_nine_digits_are_none(self) -> None:
        headers = self.headers(("1", "2"), ("1", "1234567890"))
        plan = self.assert_same(headers, model_config=MODEL)
        self.assertEqual([m.expert_id for m in plan.matrices], [2, -1])

    def test_beyond_the_last_layer_are_of_another_stack(self) -> None:
        headers = self.headers(("3", "0"), ("2", "0"), ("4", "0"), ("1", "0"))
        plan = self.assert_same(headers, model_config=MODEL)
        self.assertEqual([m.stack for m in plan.matrices], ["mtp", "text", "mtp", "text"])

    def test_without_weights_are_left_out(self) -> None:
        headers = self.headers(("1", "3"), ("1", "4"), ("1", "2"))
        plan = self.assert_same(headers, model_config=IDENTITY_MODEL)
        self.assertEqual([m.expert_id for m in plan.matrices], [3, 2])

    def test_equal_ones_in_the_first_name_are_not_taken_for_each_other(self) -> None:
        plan = self.assert_same(self.headers(("1", "1"), ("2", "0")), model_config=MODEL)
        self.assertEqual([(m.layer, m.expert_id) for m in plan.matrices], [(1, 1), (2, 0)])

    def test_that_are_part_of_a_word_are_the_same_for_all(self) -> None:
        headers = self.headers(("7", "3"), ("8", "4"), template=TEMPLATES[8])
        rule = make_rule(r"blocks\.block(\d+)\.experts\.(\d+)\.", layer_group=1, expert_group=2)
        plan = self.assert_same(headers, {"extract_rules": [rule]})
        self.assertEqual([(m.layer, m.expert_id) for m in plan.matrices], [(3, 3), (3, 4)])


class Rules(PlanCase):
    NAMES = tuple(TEMPLATES[0].format(a=a, b=b) for a in range(5) for b in range(5))

    def setUp(self) -> None:
        self.headers = [make_header(name, (32, 64)) for name in self.NAMES]

    def test_that_tell_ids_apart_are_asked_about_every_tensor(self) -> None:
        rule = make_rule(r".*layers\.[0-2]\.mlp\.experts\.(\d+)\..*", proj="special")
        changes = {"extract_rules": [rule]}
        plan = self.assert_same(self.headers, changes)
        self.assertEqual({m.proj for m in plan.matrices}, {"special", "gate_proj"})
        self.assertEqual(self.n_covered(self.headers, changes), 0)

    def test_that_take_the_projection_from_an_id_set_no_precedent(self) -> None:
        rule = make_rule(r".*layers\.\d+\.mlp\.experts\.(\d+)\.", proj_group=1, proj_map={"0": "a"})
        plan = self.assert_same(self.headers, {"extract_rules": [rule]})
        self.assertEqual({m.proj for m in plan.matrices}, {"a", "1", "2", "3", "4"})

    def test_that_take_the_stack_from_an_id_set_no_precedent(self) -> None:
        rule = make_rule(r".*layers\.(\d+)\.mlp\.experts\.\d+\.", stack_group=1, proj="a")
        plan = self.assert_same(self.headers, {"extract_rules": [rule]})
        self.assertEqual({m.stack for m in plan.matrices}, {"0", "1", "2", "3", "4"})

    def test_two_of_a_preset_that_agree_by_chance_set_no_precedent(self) -> None:
        pattern = r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.gate_proj\.weight$"
        preset = make_preset(
            make_rule(pattern, name="a", ndim=2, layer_group=1, expert_group=2, proj="x"),
            make_rule(pattern, name="b", ndim=2, layer_group=2, expert_group=1, proj="x"),
        )
        plan = self.assert_same(self.headers, preset=preset)
        self.assertEqual(
            [(m.layer, m.expert_id) for m in plan.matrices], [(i, i) for i in range(5)]
        )

    def test_whose_failures_name_the_tensor_set_no_precedent(self) -> None:
        rule = make_rule(".*", layout={"expert_axis": 0, "rows_axis": 1, "cols_axis": 2})
        plan = self.assert_same(self.headers, {"extract_rules": [rule]})
        self.assertEqual(sum(finding.count for finding in plan.findings), len(self.NAMES))

    def test_whose_words_no_alias_explains_set_no_precedent(self) -> None:
        rule = make_rule(r".*experts\.(\d+)\.(gate)_proj", expert_group=1, proj_group=2)
        plan = self.assert_same(self.headers, {"extract_rules": [rule]})
        named = {event.source_tensor for event in plan.unresolved_projections}
        self.assertEqual(named, set(self.NAMES))

    def test_with_words_that_are_ids_set_no_precedent(self) -> None:
        changes: dict[str, Any] = {
            "parsing.proj_aliases": {"first": [".0."], "gate": ["gate_proj"]}
        }
        self.assert_same(self.headers, {**changes, "extract_rules": []})
        changes = {"parsing.expert_keywords": ["layers.3."]}
        self.assert_same(self.headers, {**changes, "extract_rules": []})


class Forms(PlanCase):
    def test_of_a_stored_order_of_their_own_are_decided_apart(self) -> None:
        names = [TEMPLATES[0].format(a=1, b=b) for b in range(4)]
        headers = [
            make_header(name, (32, 64), offset=4096 * place, fortran_order=place % 2 == 1)
            for place, name in enumerate(names)
        ]
        plan = self.assert_same(headers, model_config=MODEL)
        strides = [(matrix.view.row_stride, matrix.view.col_stride) for matrix in plan.matrices]
        self.assertEqual(strides, [(64, 1), (1, 32)] * 2)

    def test_with_scales_count_their_bytes_each_time(self) -> None:
        names = [TEMPLATES[0].format(a=1, b=b) for b in range(4)]
        headers = [
            header
            for name in names
            for header in (
                make_header(name, (32, 64), "F8_E4M3"),
                make_header(f"{name}_scale_inv", (1, 1), "F32"),
            )
        ]
        plan = self.assert_same(headers, model_config=MODEL)
        self.assertEqual([account.nbytes for account in plan.accounts], [32 * 64 + 4] * 4)
        # One decision stands for all; scales are no tensors of their own.
        self.assertEqual(self.n_covered(headers, model_config=MODEL), len(headers) - 1)

    def test_that_alternate_under_one_name_are_told_apart(self) -> None:
        shapes = itertools.cycle(((32, 64), (64, 32), (32, 64), (16, 64)))
        names = [TEMPLATES[0].format(a=1, b=b) for b in range(12)]
        headers = [make_header(name, next(shapes)) for name in names]
        self.assert_same(headers, model_config=MODEL)

    def test_findings_count_all_that_a_precedent_covers(self) -> None:
        headers = [make_header(f"layers.{a}.experts.w1", (4, 32, 64)) for a in range(30)]
        plan = self.assert_same(headers)
        self.assertEqual([finding.count for finding in plan.findings], [30])

    def test_a_fused_expert_has_two_matrices(self) -> None:
        split = {"axis": "rows", "projs": ["gate_proj", "up_proj"]}
        rule = make_rule(r".*experts\.(\d+)\.gate_up_proj\.", expert_group=1, packed_split=split)
        headers = [make_header(TEMPLATES[3].format(a=1, b=b), (64, 64)) for b in range(4)]
        plan = self.assert_same(headers, {"extract_rules": [rule]})
        self.assertEqual(len(plan.matrices), 8)
        self.assertEqual(self.n_covered(headers, {"extract_rules": [rule]}), 3)


CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"extract_rules": []},
    {"scan.experts_only": False},
    {"scan.include_shared_expert": False},
    {"parsing.lookalikes": [{"match": r".*\.w1\.weight$", "kind": "dense_mlp"}]},
    {"parsing.layer_regex": r"(\d+)"},
    {"parsing.expert_regex": r"experts\.([0-9])"},
    {"parsing.proj_group_strict": True, "parsing.proj_aliases": {}},
)


@st.composite
def checkpoints(draw: st.DrawFn) -> list[TensorHeader]:
    """Return headers of a few templates with many ids, companions partly there."""
    headers = []
    templates = draw(st.lists(st.sampled_from(TEMPLATES), min_size=1, max_size=3))
    for place in range(draw(st.integers(1, 14))):
        name = draw(st.sampled_from(templates)).format(
            a=draw(st.sampled_from(IDS)), b=draw(st.sampled_from(IDS))
        )
        file = draw(st.sampled_from(("a.safetensors", "b.safetensors", "original/c.safetensors")))
        shape = draw(st.sampled_from(SHAPES))
        code = draw(st.sampled_from(("BF16", "BF16", "F8_E4M3", "U8", "I8", "I32", "F32")))
        found = [make_header(name, shape, code, file=file, offset=place * 2**20)]
        if code != "BF16" and draw(st.booleans()):
            word = draw(st.sampled_from(COMPANIONS))
            scale = draw(st.sampled_from(((1, 1), (1,), (32, 2), (32, 1), (), (4, 1, 1))))
            scale_code = draw(st.sampled_from(("F32", "U8", "F8_E8M0")))
            beside = name.removesuffix(".weight") + f".{word}"
            file = draw(st.sampled_from((file, "b.safetensors")))
            found.append(
                make_header(beside, scale, scale_code, file=file, offset=place * 2**20 + 9)
            )
        headers += draw(st.permutations(found))
    # A file has each name once.
    return list({(header.file, header.name): header for header in headers}.values())


class AnyCheckpoint(PlanCase):
    @settings(deadline=None, max_examples=300)
    @given(
        checkpoints(),
        st.sampled_from(CHANGES),
        st.sampled_from((None, MODEL, IDENTITY_MODEL)),
        st.sampled_from((None, "deepseek_v3")),
        st.sampled_from((None, {"quant_method": "fp8", "weight_block_size": [32, 32]})),
    )
    def test_is_planned_as_one_by_one(
        self,
        headers: list[TensorHeader],
        changes: dict[str, Any],
        model: dict[str, Any] | None,
        preset_name: str | None,
        quantization: dict[str, Any] | None,
    ) -> None:
        preset = next((item for item in load_presets() if item.name == preset_name), None)
        self.assert_same(
            headers,
            changes,
            model_config=model or {},
            preset=preset,
            quantization=quantization,
        )


class APrecedent(unittest.TestCase):
    def test_is_not_applied_to_names_that_are_not_alike(self) -> None:
        found: list[Precedents] = []

        def keep(precedents: Precedents, *args: Any) -> None:
            found.append(precedents)
            make(precedents, *args)

        make = Precedents.set
        with mock.patch.object(Precedents, "set", keep):
            plan = plan_headers([make_header(TEMPLATES[0].format(a=1, b=2), (32, 64))])
        (precedent,) = found[0].by_template.values()
        source = plan.units[0].source
        self.assertEqual(precedent.apply(source), (plan.units[0], plan.accounts[0]))
        self.assertIsNone(precedent.apply(source._replace(name="experts.1.gate_proj.weight")))
