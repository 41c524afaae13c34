"""What vLLM returned with a completion becomes a bundle."""

from __future__ import annotations

import base64
import json
import unittest

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing.importers.recorded import to_choices, to_ids
from moe_weights.routing.importers.vllm import read_vllm_record
from tests.support.engine_records import CHOSEN, ImportCase, to_npy

NO_ARCHIVE = base64.b64encode(b"PK\x03\x04 no archive").decode()
HUGE_NPY = base64.b64encode(
    base64.b64decode(to_npy(np.zeros((1, 2, 2), int))).replace(b"(1, 2, 2), }" + b" " * 15,
                                                                b"(1000000000000000, 2, 2), }")
).decode()  # fmt: skip


class Vllm(ImportCase):
    def test_a_completion_of_prompt_and_answer(self) -> None:
        record = {
            "prompt": "hello",
            "prompt_token_ids": [7, 8, 9],
            "outputs": [{"token_ids": [10, 11, 12], "routed_experts": CHOSEN.tolist()}],
        }
        code, told = self.run_cli("vllm", self.write("a.json", record))
        self.assertEqual(code, 0, told)
        self.assertEqual(told, f"wrote {self.folder}/run/routing/vllm-import: 5 tokens\n")
        bundle = self.bundle("vllm-import")
        self.check_events(bundle)
        events = bundle["raw_events"]
        self.assertEqual([event["token_id"] for event in events], [7, 8, 9, 10, 11])
        self.assertEqual([event["phase"] for event in events], ["prefill"] * 3 + ["decode"] * 2)
        self.assertEqual(events[0]["not_captured"], ["timing_ms", "token_text"])
        self.assertEqual(bundle["manifest"]["prompt"]["text"], "hello")
        config = bundle["manifest"]["capture_config"]
        self.assertEqual((config["engine"], config["file"]), ("vllm", "a.json"))

    def test_the_forms_that_people_have(self) -> None:
        split = {
            "prompt_token_ids": [7, 8, 9],
            "prompt_routed_experts": to_npy(CHOSEN[:3]),
            "choices": [{"token_ids": [10, 11, 12], "routed_experts": to_npy(CHOSEN[3:])}],
        }
        arrays = {"routed_experts": CHOSEN, "prompt_token_ids": np.array([7, 8, 9]),
                  "token_ids": np.array([10, 11])}  # fmt: skip
        for number, (path, more) in enumerate(
            [
                (self.write("split.json", split), ()),
                (self.write("list.json", [split]), ()),
                (self.write("a.npz", arrays), ()),
                (self.write("b.npz", {"x": CHOSEN}), ("--prompt-tokens", 3)),
                (self.write("a.npy", CHOSEN.astype(np.int16)), ("--prompt-tokens", 3)),
                (self.write("plain.json", CHOSEN.tolist()), ("--prompt-tokens", 3)),
                (self.write("two.json", [{}, split]), ("--request", 1)),
            ]
        ):
            code, told = self.run_cli("vllm", path, *more, "--run-id", f"r{number}")
            self.assertEqual(code, 0, told)
            bundle = self.bundle(f"r{number}")
            self.check_events(bundle)
            self.assertEqual(
                [event["phase"] for event in bundle["raw_events"]],
                ["prefill"] * 3 + ["decode"] * 2,
            )

    def test_all_layers_on_the_axis(self) -> None:
        wide = np.zeros((5, 4, 2), dtype=np.int64)
        wide[:, [1, 3]] = CHOSEN
        path = self.write("a.npy", wide)
        code, told = self.run_cli("vllm", path, "--prompt-tokens", 3)
        self.assertEqual(code, 2)
        self.assertIn("the array has 4 layers; these are not the 2 layers with experts; name", told)
        self.assertFalse((self.folder / "run" / "routing" / "vllm-import").exists())
        code, told = self.run_cli("vllm", path, "--prompt-tokens", 3, "--num-layers", 4)
        self.assertEqual(code, 0, told)
        self.check_events(self.bundle("vllm-import"))

    def test_a_config_says_layers_and_experts(self) -> None:
        config = {"model_type": "qwen3_moe", "num_hidden_layers": 4, "num_experts": 4,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 8, "hidden_size": 8,
                  "decoder_sparse_step": 2}  # fmt: skip
        path = self.write("a.npy", CHOSEN)
        more = ("--prompt-tokens", 3, "--config", self.write("config.json", config))
        code, told = self.run_cli("vllm", path, *more)
        self.assertEqual(code, 0, told)
        self.check_events(self.bundle("vllm-import"))
        dense = self.write("dense.json", {"model_type": "llama", "num_hidden_layers": 4})
        code, told = self.run_cli("vllm", path, "--config", dense)
        self.assertEqual(code, 2)
        self.assertIn("give --config with the model's config.json", told)
        (self.folder / "other" / "model").mkdir(parents=True)
        self.write("other/model/config.json", config)
        for missing in ("no.json", "other/config.json"):
            code, told = self.run_cli("vllm", path, "--config", self.folder / missing)
            self.assertEqual(code, 5, told)

    def test_a_row_that_nobody_wrote_is_not_captured(self) -> None:
        chosen = CHOSEN.copy()
        chosen[1, 0] = 0
        chosen[2, 1] = -1
        path = self.write("a.npy", chosen)
        code, told = self.run_cli("vllm", path, "--prompt-tokens", 3)
        self.assertEqual(code, 0, told)
        events = self.bundle("vllm-import")["raw_events"]
        self.assertIsNone(events[1]["layers"][0]["topk_indices"])
        self.assertIn("topk_indices", events[1]["layers"][0]["not_captured"])
        self.assertIsNone(events[2]["layers"][1]["topk_indices"])
        self.assertEqual(events[2]["layers"][1]["num_active_experts"], 2)

    def test_an_import_that_was_killed_is_begun_anew_and_a_capture_is_not_touched(self) -> None:
        path = self.write("r.npy", CHOSEN)
        working = self.folder / "run" / "routing" / ".run-bundle.working-vllm-import"
        working.mkdir(parents=True)
        (working / "raw_trace.ndjson").write_text("half a tok")
        manifest = {"capture_config": {"method": "forward hooks"}}
        (working / "manifest.json").write_text(json.dumps(manifest))
        code, told = self.run_cli("vllm", path, "--prompt-tokens", 2)
        self.assertEqual(code, 2)
        self.assertIn("holds an unfinished run", told)
        for config in (None, {"method": "import"}):
            manifest = {"capture_config": config}
            (working / "manifest.json").write_text(json.dumps(manifest))
            code, told = self.run_cli("vllm", path, "--prompt-tokens", 2)
            self.assertEqual(code, 2 if config is None else 0, told)
        self.assertFalse(working.exists())

    def test_damaged_records_leave_nothing(self) -> None:
        outside, twice = CHOSEN.copy(), np.tile(np.arange(3), (5, 2, 1))
        outside[4, 1, 0] = 9
        twice[3, 0] = [1, 2, 1]
        for number, (values, told) in enumerate(
            (
                (outside, "token 4, layer 3: expert 9 was chosen, the layer has 4"),
                (twice, "token 3, layer 1: [1, 2, 1] names an expert twice"),
                (CHOSEN[:0], "the record holds no tokens"),
            )
        ):
            path = self.write(f"{number}.npy", values)
            code, said = self.run_cli("vllm", path, "--prompt-tokens", 0)
            self.assertEqual(code, 1, said)
            self.assertIn(told, said)
            self.assertFalse((self.folder / "run").exists())

    def test_what_contradicts_itself_is_refused(self) -> None:
        good = {"routed_experts": CHOSEN.tolist(), "prompt_token_ids": [7, 8, 9]}
        for record, error, told in (
            ({}, InvalidDataError, "has no routed_experts"),
            ([{}, {}], UsageError, "2 requests, a bundle holds one text; choose one"),
            ({"outputs": [{}, {}]}, UsageError, "2 outputs, .* keep one of them"),
            ({"outputs": ["text"]}, UsageError, r"no outputs\[0\]"),
            (CHOSEN, UsageError, "give it with --prompt-tokens"),
            (CHOSEN[0], InvalidDataError, r"shape \[tokens, layers, k\], got int64 \[2, 2\]"),
            ([[[1.5]]], InvalidDataError, "got float64"),
            ([[[1], [1, 2]]], InvalidDataError, r"is no array \[tokens, layers, k\]"),
            (good | {"token_ids": [1] * 9}, InvalidDataError, "5 rows for 12 tokens"),
            (good | {"routed_experts": CHOSEN[:2].tolist()}, InvalidDataError, "the prompt has 3"),
            (good | {"prompt_token_ids": "abc"}, InvalidDataError, "must be a row of token ids"),
            (good | {"routed_experts": "%%"}, InvalidDataError, "no base64 of a .npy"),
            (good | {"routed_experts": NO_ARCHIVE}, InvalidDataError, "no base64 of a .npy"),
            (good | {"routed_experts": HUGE_NPY}, InvalidDataError, "no base64 of a .npy"),
            (
                good | {"prompt_routed_experts": [[[0, 1]]] * 3},
                InvalidDataError,
                r"layers and k of \[1, 2\], routed_experts of \[2, 2\]",
            ),
            (
                good | {"prompt_routed_experts": CHOSEN[:2].tolist()},
                InvalidDataError,
                "prompt_token_ids has 3 tokens, the prompt 2",
            ),
        ):
            with self.subTest(told), self.assertRaisesRegex(error, told):
                read_vllm_record(record)
        with self.assertRaisesRegex(UsageError, r"no requests\[5\]"):
            read_vllm_record([{}, {}], request=5)
        record = {"prompt_routed_experts": CHOSEN[:3], "routed_experts": CHOSEN[3:]}
        self.assertEqual(read_vllm_record(record, n_prompt=3).n_prompt, 3)
        told = "prompt_routed_experts has 3 rows, the prompt is said to have 2; leave --prompt-"
        with self.assertRaisesRegex(InvalidDataError, told):
            read_vllm_record(record, n_prompt=2)

    def test_one_request_has_no_second_one(self) -> None:
        chosen = [[[0, 1]], [[1, 2]]]
        for record in ({"routed_experts": chosen}, chosen):
            self.assertEqual(read_vllm_record(record, request=0, n_prompt=1).n_prompt, 1)
            with self.assertRaisesRegex(UsageError, r"one request and has no requests\[5\]"):
                read_vllm_record(record, request=5, n_prompt=1)

    def test_token_ids_of_the_prompt_may_stand_in_the_choice(self) -> None:
        choice = {"routed_experts": [[[0, 1]], [[1, 2]]], "prompt_token_ids": [7], "token_ids": [8]}
        read = read_vllm_record({"choices": [choice]})
        self.assertEqual((read.n_prompt, read.token_ids), (1, (7, 8)))
        self.assertEqual(to_ids((1, 2), "ids"), [1, 2])
        with self.assertRaisesRegex(InvalidDataError, "ids must be a row"):
            to_ids([True], "ids")
        self.assertEqual(to_choices(CHOSEN.astype(np.uint8), "x").dtype, np.int64)


if __name__ == "__main__":
    unittest.main()
