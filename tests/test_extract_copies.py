from __future__ import annotations

import unittest

from moe_weights.extract.copies import copies_finding, set_copies_apart
from tests.support.extraction import make_header, plan_headers

UP = "model.layers.0.mlp.experts.0.up_proj.weight"


class SettingApart(unittest.TestCase):
    def test_is_told_with_the_files(self) -> None:
        headers = [
            make_header(UP, (6, 8)),
            make_header(UP, (6, 8), file="original/b.safetensors"),
            make_header("norm", (8,), file="original/a.safetensors"),
        ]
        (finding, *_) = plan_headers(headers).findings
        self.assertEqual(finding, copies_finding(headers[1:]))
        self.assertEqual(finding.count, 2)
        self.assertEqual(
            finding.message,
            "[scan] second copy of the model, not measured: 2 files "
            "(original/a.safetensors, original/b.safetensors)",
        )

    def test_is_not_done_where_the_other_files_cannot_hold_the_model(self) -> None:
        native = make_header("layers.0.experts.0.w1.weight", (64, 64), file="consolidated.st")
        for other, is_apart in (((8, 63), False), ((8, 64), True)):
            main = make_header(UP, other, file="model.safetensors")
            kept, copies = set_copies_apart([main, native])
            expected = ([main], (native,)) if is_apart else ([main, native], ())
            self.assertEqual((kept, copies), expected)

    def test_is_not_done_to_files_that_continue_the_model(self) -> None:
        first = make_header(UP, (6, 8), file="model.safetensors")
        second = make_header(
            "model.layers.1.mlp.experts.0.up_proj.weight", (6, 8), file="original/2.safetensors"
        )
        copy = make_header(UP, (6, 8), file="original/1.safetensors")
        headers = [first, copy, second]
        self.assertEqual(set_copies_apart(headers), ([first, second], (copy,)))

    def test_is_not_done_to_the_only_experts(self) -> None:
        dense = make_header("model.layers.0.self_attn.q_proj.weight", (64, 64), file="a.st")
        again = make_header(dense.name, (64, 64), file="original/a.st")
        experts = make_header(UP, (6, 8), file="original/experts.st")
        headers = [dense, again, experts]
        self.assertEqual(set_copies_apart(headers), ([dense, experts], (again,)))

    def test_measures_the_model_that_a_small_file_lies_beside(self) -> None:
        native = make_header(UP, (64, 64), file="consolidated.safetensors")
        vision = make_header("vision.proj.weight", (4, 4), file="vision.safetensors")
        plan = plan_headers([native, vision])
        self.assertEqual([unit.source.header for unit in plan.units], [native])


if __name__ == "__main__":
    unittest.main()
