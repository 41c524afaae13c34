"""What SGLang's recorder dumped becomes a bundle, or counts."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import unittest
from unittest import mock

import numpy as np

from moe_weights.cli import main
from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing import load_run_bundle
from moe_weights.routing.importers.sglang import (
    is_per_token,
    read_sglang_counts,
    read_sglang_tokens,
)
from tests.support.engine_records import CHOSEN, ImportCase, make_dump, make_pass


class Sglang(ImportCase):
    def test_tokens(self) -> None:
        code, told = self.run_cli("sglang", self.write("a.json", make_dump()))
        self.assertEqual(code, 0, told)
        bundle = self.bundle("sglang-import")
        self.check_events(bundle)
        events = bundle["raw_events"]
        self.assertEqual([event["token_id"] for event in events], [100, 101, 102, 103, 104])
        self.assertEqual([event["phase"] for event in events], ["prefill"] * 3 + ["decode"] * 2)

    def test_physical_experts_become_logical_ones(self) -> None:
        mapping = [[3, 2, 1, 0, 3], [0, 1, 2, 3, 0]]
        dump = make_dump(last_physical_to_logical_map=mapping)
        code, told = self.run_cli("sglang", self.write("a.json", dump))
        self.assertEqual(code, 0, told)
        chosen = CHOSEN.copy()
        chosen[:, 0] = 3 - chosen[:, 0]
        self.check_events(self.bundle("sglang-import"), chosen)
        for bad, told in (
            ([[0, 1, 2, 3]], r"shape \[1, 4\], the record 2 layers"),
            ([[0, 1, 2], [0, 1, 2]], "physical expert 3 is not in"),
            ([[-1, 1, 2, 3], [0, 1, 2, 3]], r"records\[0\]: a physical expert was chosen that"),
        ):
            dump = make_dump(last_physical_to_logical_map=bad)
            with self.assertRaisesRegex(InvalidDataError, told):
                read_sglang_tokens(dump)

    def test_texts_one_after_the_other(self) -> None:
        dump = {"records": [make_pass(1, [0, 1, 2], CHOSEN[:3]), make_pass(2, [0, 1], CHOSEN[:2])]}
        with self.assertRaisesRegex(UsageError, "2 texts, a bundle holds one"):
            read_sglang_tokens(dump)
        n_layers, tokens = read_sglang_tokens(dump, request=1)
        self.assertEqual((n_layers, len(list(tokens))), (2, 2))
        with self.assertRaisesRegex(UsageError, "there is no number 2"):
            read_sglang_tokens(dump, request=2)

    def test_what_mixes_texts_or_does_not_fit_is_refused(self) -> None:
        one = make_pass(1, [0, 1], CHOSEN[:2])
        for records, error, told in (
            ([one, make_pass(2, [3], CHOSEN[:1])], UsageError, "its passes mix several texts"),
            ([make_pass(1, [4, 5], CHOSEN[:2])], UsageError, "does not start at position 0"),
            ([one, one | {"rank": 1}], UsageError, "mixes ranks"),
            ([one | {"forward_mode": 3}], UsageError, r"records\[0\].forward_mode is 3"),
            ([one | {"positions": [0]}], InvalidDataError, "2 input_ids, 1 positions"),
            ([one | {"input_ids": None}], InvalidDataError, r"records\[0\] has no input_ids"),
            ([one | {"topk_ids_of_layer": [[0.5]]}], InvalidDataError, "must hold integers"),
            ([one | {"topk_ids_of_layer": [[1], [1, 2]]}], InvalidDataError, "is no array"),
            ([{}], InvalidDataError, "has no forward_pass_id"),
            ([one, 5], InvalidDataError, "has no forward_pass_id"),
            ([one, one | {"rank": [1]}], UsageError, r"mixes ranks \['0', '\[1\]'\]"),
            ([one | {"forward_mode": [1]}], UsageError, r"records\[0\].forward_mode is \[1\]"),
            (
                [one, make_pass(2, [2], CHOSEN[2:3, :1])],
                InvalidDataError,
                "the passes of the record have 1 and 2 layers",
            ),
        ):
            with self.subTest(told), self.assertRaisesRegex(error, told):
                read_sglang_tokens({"records": records})
        for dump in ({}, [], {"records": []}, {"records": [1]}):
            with self.assertRaisesRegex(InvalidDataError, "this is no dump"):
                is_per_token(dump)

    def test_counts_become_statistics_and_no_events(self) -> None:
        steps = [[[1, 2, 3, 4], [0, 0, 0, 8]], [[4, 3, 2, 1], [0, 0, 0, 2]]]
        path = self.write("a.json", {"rank": 0, "logical_count": steps})
        code, told = self.run_cli("sglang", path, "--active", 2)
        self.assertEqual(code, 0, told)
        folder = self.folder / "run" / "routing" / "sglang-import"
        self.assertEqual([entry.name for entry in folder.iterdir()], ["expert_counts.json"])
        counts = json.loads((folder / "expert_counts.json").read_text())
        self.assertEqual([layer["selections"] for layer in counts["layers"]],
                         [[5, 5, 5, 5], [0, 0, 0, 10]])  # fmt: skip
        self.assertEqual([layer["layer_index"] for layer in counts["layers"]], [1, 3])
        self.assertIn("tokens", counts["not_captured"])
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(main(["routing-stats", str(self.folder / "run")]), 0)
        self.assertIn("    1        4       -    1.0000  0.0000", out.getvalue())
        self.assertEqual(self.run_cli("sglang", path)[0], 6)

    def test_counts_on_a_full_disk_leave_nothing(self) -> None:
        path = self.write("a.json", {"logical_count": [[1, 2, 3, 4]] * 2})
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with mock.patch("os.fsync", side_effect=full):
            code, told = self.run_cli("sglang", path)
        self.assertEqual(code, 6)
        self.assertIn("No space left on device", told)
        self.assertFalse((self.folder / "run").exists())
        self.assertEqual(self.run_cli("sglang", path)[0], 0)

    def test_counts_that_do_not_fit_are_refused(self) -> None:
        path = self.write("a.json", {"logical_count": [[1, 2, 3]] * 2})
        code, told = self.run_cli("sglang", path)
        self.assertEqual(code, 2)
        self.assertIn("the record counts 3 experts per layer, the model has 4", told)
        path = self.write("b.json", {"logical_count": [[1, 2, 3, 4]] * 2})
        code, told = self.run_cli("sglang", path, "--active", 5)
        self.assertIn("--active must be 1..4", told)

    def test_counts_per_pass(self) -> None:
        records = [{"global_physical_count": [[1, 2, 3]]}, {"global_physical_count": [[1, 1, 1]]}]
        self.assertFalse(is_per_token({"records": records}))
        self.assertEqual(read_sglang_counts({"records": records}).tolist(), [[2, 3, 4]])
        dump = {"records": records, "last_physical_to_logical_map": [[0, 1, 0]]}
        self.assertEqual(read_sglang_counts(dump).tolist(), [[6, 3]])
        for bad, told in (
            ({"records": [*records, {"global_physical_count": [[1]]}]}, "changes its shape"),
            ({"records": records, "last_physical_to_logical_map": [[0, 1]]}, "has shape"),
            ({"logical_count": [[-1, 2]]}, "holds -1; counts must be 0 or more"),
            ({"logical_count": [[[-5, 2]], [[9, 2]]]}, "holds -5; counts must be 0 or more"),
            (
                {"records": [{"global_physical_count": [[value]]} for value in (-5, 9)]},
                "holds -5; counts must be 0 or more",
            ),
            ({"logical_count": [1, 2]}, r"must be of shape \[layers, experts\]; got \[2\]"),
            (
                {
                    "records": [{"global_physical_count": np.zeros((0, 2), int)}],
                    "last_physical_to_logical_map": np.zeros((0, 2), int),
                },
                r"must be of shape \[layers, experts\]; got \[0, 0\]",
            ),
            *(
                (
                    {"records": records, "last_physical_to_logical_map": [[0, 1, logical]]},
                    "must name logical experts below 3, the number of physical ones",
                )
                for logical in (-1, 3, 10**15)
            ),
        ):
            with self.subTest(told), self.assertRaisesRegex(InvalidDataError, told):
                read_sglang_counts(bad)


class UnusedPlaces(ImportCase):
    def test_are_no_active_experts_of_a_token_that_was_not_recorded(self) -> None:
        chosen = np.full((3, 2, 10), -1)  # ten places, two of them used
        chosen[0, :, :2] = [[0, 1], [2, 3]]
        chosen[2, :, :2] = [[3, 1], [0, 2]]
        code, told = self.run_cli("vllm", self.write("r.npy", chosen), "--prompt-tokens", 1)
        self.assertEqual(code, 0, told)
        events = load_run_bundle(self.folder / "run" / "routing" / "vllm-import")["raw_events"]
        layers = [layer for event in events for layer in event["layers"]]
        self.assertEqual([layer["num_active_experts"] for layer in layers], [2] * 6)
        self.assertEqual([layer["topk_indices"] for layer in layers[2:4]], [None, None])


if __name__ == "__main__":
    unittest.main()
