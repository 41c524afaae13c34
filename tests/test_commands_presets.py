"""`moe-weights presets`: the list, and one preset in the form of a config."""

from __future__ import annotations

import json
import re
import unittest
from math import prod

from moe_weights.checkpoint.expert_expectation import expect_experts
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.load import parse_config
from moe_weights.config.preset import Preset, load_presets
from moe_weights.config.schema import AnalysisConfig
from moe_weights.config.template import template_config
from moe_weights.decode.stored_tensor import Resolution, StoredTensor
from moe_weights.extract.plan import ExtractionPlan, plan_extraction
from tests.support.command_line import run_command

# Two axis orders under one name: the preset lets config.json decide, a config takes the first rule.
RIVALS = {"qwen3_vl_moe"}


def shown_config(name: str) -> AnalysisConfig:
    """Return the template with what `presets show` prints pasted into it."""
    shown = json.loads(run_command("presets", "show", name).out)
    document = template_config("/m")
    parsing, rules = document["parsing"], document["extract_rules"]
    assert isinstance(parsing, dict)
    assert isinstance(rules, list)
    document["parsing"] = parsing | shown["parsing"]
    document["extract_rules"] = shown["extract_rules"] + rules
    return parse_config(document)


def plan_examples(
    config: AnalysisConfig, preset: Preset, *, is_used: bool
) -> tuple[ExtractionPlan, ...]:
    """Plan the preset's own examples, one by one."""
    plans = []
    for example in preset.examples:
        header = TensorHeader(
            file="model.safetensors",
            name=example.tensor,
            dtype_code="BF16",
            shape=example.shape,
            offset=0,
            nbytes=2 * prod(example.shape),
        )
        tensor = StoredTensor(
            name=example.tensor, encoding=example.encoding, header=header, shape=example.shape
        )
        plans.append(
            plan_extraction(
                Resolution(tensors=(tensor,), refusals=(), companions={}, others=()),
                config,
                expect_experts(preset.config),
                scanned=(header,),
                preset=preset if is_used else None,
            )
        )
    return tuple(plans)


class List(unittest.TestCase):
    def test_names_every_preset_with_its_model_types(self) -> None:
        outcome = run_command("presets")
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        cells = [
            [cell.strip() for cell in line.strip("│").split("│")]
            for line in outcome.out.splitlines()
            if line.startswith("│")
        ]
        self.assertEqual(
            [row[0] for row in cells if row[0]], [preset.name for preset in load_presets()]
        )
        types = re.findall(r"[\w.-]+", " ".join(row[1] for row in cells))
        self.assertEqual(types, [kind for preset in load_presets() for kind in preset.model_types])


class Show(unittest.TestCase):
    def test_prints_what_can_be_pasted(self) -> None:
        outcome = run_command("presets", "show", "mixtral")
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        shown = json.loads(outcome.out)
        self.assertEqual(set(shown), {"parsing", "extract_rules"})
        self.assertEqual(set(shown["parsing"]), {"preset", "lookalikes"})
        self.assertIsNone(shown["parsing"]["preset"])

    def test_pasted_gives_the_same_plan_without_the_preset(self) -> None:
        template = parse_config(template_config("/m"))
        for preset in load_presets():
            if preset.name in RIVALS:
                continue
            with self.subTest(preset=preset.name):
                pasted = plan_examples(shown_config(preset.name), preset, is_used=False)
                used = plan_examples(template, preset, is_used=True)
                self.assertEqual(
                    [plan.matrices for plan in pasted], [plan.matrices for plan in used]
                )
                self.assertEqual(
                    [plan.accounts for plan in pasted], [plan.accounts for plan in used]
                )

    def test_says_where_a_config_takes_the_first_rule_and_the_preset_does_not(self) -> None:
        for preset in load_presets():
            outcome = run_command("presets", "show", preset.name)
            with self.subTest(preset=preset.name):
                self.assertEqual(bool(outcome.err), preset.name in RIVALS)
        outcome = run_command("presets", "show", "qwen3_vl_moe")
        self.assertEqual(outcome.code, 0)
        self.assertEqual(
            outcome.err.splitlines()[0],
            "note: qwen3_vl_moe_hub_gate_up and qwen3_vl_moe_runtime_gate_up fit the same tensors. "
            "The preset takes the one that fits config.json; in extract_rules the first decides, "
            "so keep the right one.",
        )

    def test_of_an_unknown_name_offers_the_nearest(self) -> None:
        outcome = run_command("presets", "show", "gpt-oss")
        self.assertEqual((outcome.code, outcome.out), (2, ""))
        self.assertEqual(
            outcome.err,
            'error: UsageError: there is no preset named "gpt-oss"; did you mean "gpt_oss"?\n',
        )

    def test_of_a_name_like_no_other_lists_them_all(self) -> None:
        outcome = run_command("presets", "show", "zzzzzz")
        self.assertEqual(outcome.code, 2)
        names = ", ".join(preset.name for preset in load_presets())
        self.assertEqual(
            outcome.err,
            f'error: UsageError: there is no preset named "zzzzzz"; known are {names}\n',
        )

    def test_takes_a_name(self) -> None:
        outcome = run_command("presets", "show")
        self.assertEqual(outcome.code, 2)
        self.assertIn("the following arguments are required: NAME", outcome.err)


if __name__ == "__main__":
    unittest.main()
