from __future__ import annotations

import json
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.errors import InvalidDataError
from moe_weights.tracing import (
    CaptureSet,
    HookCapture,
    HookPoint,
    ToyEngine,
    TraceResult,
    format_trace,
    load_captures,
    load_trace,
    open_engine,
    write_captures,
)
from tests.support.command_line import Outcome, run_command
from tests.support.fake_torch import (
    FakeNetwork,
    fake_frameworks,
    replaced_modules,
    write_fake_model,
)
from tests.support.runs import temporary_folder
from tests.support.traces import change_json


class CommandCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)

    def trace(self, baseline: object, target: object, *more: object) -> Outcome:
        return run_command(
            "trace", "--baseline", baseline, "--target", target, "--prompt", "hi", *more
        )

    def result(self, baseline: object, target: object, *more: object) -> tuple[int, Any]:
        path = self.folder / "new" / "result.json"
        outcome = self.trace(baseline, target, "--json", path, "--quiet", *more)
        self.assertEqual(outcome.out + outcome.err, "")
        return outcome.code, json.loads(path.read_text("utf-8"))

    def fakes(self, **options: Any) -> None:
        patch = replaced_modules(fake_frameworks(**options))
        self.enterContext(patch)


class Mocks(CommandCase):
    def test_that_agree_end_with_0(self) -> None:
        code, result = self.result("http://a", "http://b", "--mock")
        self.assertEqual((code, result["verdict"]), (0, "match"))
        self.assertEqual(len(result["comparisons"]), 20)

    def test_that_differ_end_with_1_and_still_write(self) -> None:
        code, result = self.result("a", "b", "--mock", "--noise-scale", 0.1, "--num-layers", 2)
        self.assertEqual((code, result["overall_diverged"]), (1, True))
        self.assertEqual(result["first_divergence"]["layer"], 0)
        outcome = self.trace("a", "b", "--mock", "--noise-scale", 0.1, "--threshold", 100)
        self.assertEqual(outcome.code, 0)
        self.assertIn("Overall: ✅ MATCH", outcome.out)

    def test_with_nothing_to_compare_end_with_2(self) -> None:
        for more in (("--num-layers", 0), ("--hooks", "decode_step", "--decode-steps", 0)):
            outcome = self.trace("a", "b", "--mock", *more)
            self.assertEqual(outcome.code, 2)
            self.assertIn("Overall: ⚠️ NO COMPARISONS", outcome.out)

    def test_save_no_captures(self) -> None:
        self.assertEqual(self.trace("a", "b", "--mock", "--save-captures", "x").code, 2)


class Usage(CommandCase):
    def test_that_is_wrong_ends_with_2(self) -> None:
        for told, more in {
            "unknown hook 'x'; valid names: prefill, kv_transfer, decode_step": ("--hooks", "x"),
            "no hook named": ("--hooks", ","),
            "threshold: nan": ("--threshold", "nan"),
            "threshold: -1.0": ("--threshold=-1",),
            "exclude each other": ("--threshold", "1", "--preset", "bfloat16"),
            "'-1' is not a whole number": ("--num-layers=-1",),
            "is not a comma list of token ids": ("--prompt-ids", "1,x"),
        }.items():
            outcome = self.trace("a", "b", "--mock", *more)
            self.assertEqual(outcome.code, 2, told)
            self.assertIn(told, outcome.err)

    def test_of_a_server_without_mock_ends_with_2(self) -> None:
        for pair in (("http://a", "toy"), ("toy", "https://b")):
            outcome = self.trace(*pair)
            self.assertEqual(outcome.code, 2)
            self.assertIn("live tracing of a server needs hooks in its framework", outcome.err)

    def test_needs_all_three_even_with_mock(self) -> None:
        self.assertEqual(run_command("trace", "--mock", "--prompt", "x").code, 2)

    def test_of_what_cannot_be_read_ends_with_5(self) -> None:
        broken = self.folder / "broken"
        broken.mkdir()
        (broken / "config.json").write_text("{", encoding="utf-8")
        listed = self.folder / "listed"
        listed.mkdir()
        (listed / "config.json").write_text("[]", encoding="utf-8")
        empty = self.folder / "empty"
        empty.mkdir()
        for told, named in {
            "does not exist": self.folder / "none",
            "is neither": empty,
            "not JSON": broken,
            "not a JSON object": listed,
            "file/unreadable": self.folder / "none.json",
        }.items():
            outcome = self.trace("toy", named)
            self.assertEqual(outcome.code, 5, outcome.err)
            self.assertIn(told, outcome.err)

    def test_of_names_that_no_file_system_takes_end_with_5_or_6(self) -> None:
        long = "x" * 300
        for named in (long, f"{long}.json", f"toy:{'9' * 300}"):
            outcome = self.trace(named, "toy")
            self.assertEqual(outcome.code, 5)
            self.assertIn("File name too long", outcome.err)
        outcome = run_command("trace-model", "--model", long, "--prompt", "x", "--out", self.folder)
        self.assertEqual(outcome.code, 5)
        self.assertIn("cannot be read: File name too long", outcome.err)
        outcome = self.trace("toy", "toy", "--save-captures", self.folder / long)
        self.assertEqual((outcome.code, outcome.out), (6, ""))

    def test_to_standard_output_by_a_dash_is_refused(self) -> None:
        for option in ("--json", "--save-captures"):
            outcome = self.trace("toy", "toy", option, "-")
            self.assertEqual(outcome.code, 2)
            self.assertIn("'-' is not standard output here; give a path", outcome.err)

    def test_of_a_missing_framework_ends_with_2(self) -> None:
        model = write_fake_model(self.folder / "model")
        for name, backend in (("torch", "torch"), ("mlx_lm.utils", "mlx")):
            with replaced_modules({name: None}):
                outcome = self.trace(model, model, "--backend", backend)
            self.assertEqual(outcome.code, 2)
            self.assertIn("install it with: pip install", outcome.err)


class SavedSides(CommandCase):
    def captures(self, logits: Any, name: str, **changes: Any) -> Path:
        """Save a capture of one step after one prompt token."""
        capture = HookCapture(HookPoint.PREFILL, 0, logits=logits)
        fields = {"num_layers": 1, "prompt_ids": (1,), "decode_ids": (1,)} | changes
        return write_captures(
            self.folder / name / "capture.json", CaptureSet(captures=(capture,), **fields)
        )

    def test_with_logits_of_another_form_tell_no_choice(self) -> None:
        for number, logits in enumerate((np.float32(3), np.zeros((0, 8)), np.arange(8.0))):
            path = self.captures(np.asarray(logits), str(number), decode_ids=(1,))
            code, result = self.result(path, path, "--threshold", 1)
            self.assertEqual(code, 0)
            self.assertNotIn("would have chosen", " ".join(result["notes"]))

    def test_that_claim_more_than_they_hold_are_told(self) -> None:
        path = self.captures(np.eye(2), "a", num_layers=3, decode_ids=(1, 1))
        code, result = self.result(path, path)
        self.assertEqual(code, 0)
        self.assertEqual(
            result["notes"],
            [
                "2 of 3 layers were given by neither side, first 1",
                "2 of 2 decode steps were given by neither side, first 0",
            ],
        )

    def test_that_would_be_refused_are_not_written(self) -> None:
        with self.assertRaises(InvalidDataError) as caught:
            self.captures(np.eye(2), "a", prompt_ids=(2,))
        path = self.folder / "a" / "capture.json"
        self.assertEqual(
            str(caught.exception),
            f"{path}: it would be refused when it is loaded: $.prompt_ids[0]: "
            "semantic/token_id_out_of_range: 2, but the logits are over 2 tokens",
        )
        self.assertFalse(path.parent.exists())


class LiveSides(CommandCase):
    def test_of_one_model_match_and_of_two_diverge(self) -> None:
        self.assertEqual(self.result("toy", "toy:0", "--decode-steps", 2)[0], 0)
        code, result = self.result("toy", "toy:1")
        self.assertEqual(code, 1)
        self.assertIn("baseline: numpy, float32", result["notes"])
        self.assertIn(
            "target alone would have chosen another token at decode step 0", result["notes"]
        )
        self.assertEqual(self.result("toy", "toy:1", "--relative", "--threshold", 99)[0], 0)
        self.assertEqual(self.result("toy", "toy:1", "--preset", "float16")[0], 1)
        code, _result = self.result("toy", "toy", "--prompt-ids", "1,2", "--num-layers", 1)
        self.assertEqual(code, 0)
        outcome = self.trace("toy", "toy", "--prompt-ids", "1,99")
        self.assertEqual(outcome.code, 2)
        self.assertIn("outside the vocabulary", outcome.err)

    def test_may_be_saved_and_compared_again(self) -> None:
        kept = self.folder / "kept"
        code, live = self.result("toy", "toy:1", "--save-captures", kept, "--decode-steps", 2)
        self.assertEqual(code, 1)
        code, saved = self.result(kept / "baseline", kept / "target" / "capture.json")
        self.assertEqual((code, saved["comparisons"]), (1, live["comparisons"]))
        code, mixed = self.result(kept / "baseline", "toy:1")
        self.assertEqual((code, mixed["comparisons"]), (1, live["comparisons"]))
        code, mixed = self.result("toy", kept / "baseline")
        self.assertEqual((code, mixed["verdict"]), (0, "match"))
        self.assertEqual(len(load_captures(kept / "target" / "capture.json").decode_ids), 2)

    def test_saved_for_another_prompt_are_refused(self) -> None:
        kept = self.folder / "kept"
        self.result("toy", "toy", "--save-captures", kept)
        outcome = run_command(
            "trace", "--baseline", kept / "baseline", "--target", "toy", "--prompt", "other"
        )
        self.assertEqual(outcome.code, 2)
        self.assertIn("captured for another prompt, 'hi'", outcome.err)
        outcome = self.trace(kept / "baseline", "toy", "--prompt-ids", "1,2")
        self.assertEqual(outcome.code, 2)
        self.assertIn("other token ids", outcome.err)

    def test_saved_on_other_tokens_are_no_verdict(self) -> None:
        kept = self.folder / "kept"
        self.result("toy", "toy", "--save-captures", kept)
        path = kept / "target" / "capture.json"
        change_json(path, lambda d: d.update(prompt_ids=[1, 2], decode_ids=[0]))
        code, result = self.result(kept / "baseline", path)
        self.assertEqual(code, 2)
        self.assertEqual(
            result["errors"],
            [
                "both sides ran different token ids of the prompt",
                "both sides ran different tokens at the decode steps",
            ],
        )
        change_json(path, lambda d: d.update(prompt_ids=[], num_layers=4, source={}))
        change_json(kept / "baseline" / "capture.json", lambda d: d.update(prompt_ids=[]))
        _code, result = self.result(kept / "baseline", path)
        self.assertIn("layers: baseline 3, target 4", result["notes"])


class TorchSides(CommandCase):
    def test_with_a_tokeniser_get_its_ids(self) -> None:
        self.fakes()
        model = write_fake_model(self.folder / "m", with_tokenizer=True)
        kept = self.folder / "kept"
        code, result = self.result(model, model, "--save-captures", kept)
        self.assertEqual((code, result["verdict"]), (0, "match"))
        captures = load_captures(kept / "baseline" / "capture.json")
        self.assertEqual(captures.prompt_ids, (104 % 50, 105 % 50))
        self.assertEqual(captures.source["dtype"], "bfloat16")
        caches = [c.layer for c in captures.captures if c.hook_point == "kv_transfer"]
        self.assertEqual(caches, [0, 2])
        with mock.patch(
            "moe_weights.tracing.sides.load_tokenizer",
            side_effect=[lambda _t: {"input_ids": [1]}, lambda _t: {"input_ids": [2]}],
        ):
            code, result = self.result(model, model)
        self.assertEqual(code, 2)
        self.assertIn("tokenisers of both models make different ids", result["errors"][0])

    def test_that_fail_while_running_are_unreadable(self) -> None:
        network = FakeNetwork()
        network.head.compute = lambda _hidden: 1 / 0
        self.fakes(network=network)
        model = write_fake_model(self.folder / "m")
        outcome = self.trace(model, model)
        self.assertEqual(outcome.code, 5)
        self.assertIn("failed while running: ZeroDivisionError: division by zero", outcome.err)
        outcome = run_command(
            "trace-model", "--model", model, "--prompt", "x", "--out", self.folder
        )
        self.assertEqual(outcome.code, 5)


class TraceModel(CommandCase):
    def run_it(self, *more: object) -> Outcome:
        return run_command(
            "trace-model", "--model", "toy", "--prompt", "hi", "--out", self.folder / "t", *more
        )

    def test_writes_a_trace_and_says_what_may_be_claimed(self) -> None:
        outcome = self.run_it(
            "--collect-layer", 0, "--collect-layer", 2, "--decode-steps", 1, "--logprobs",
            "--request", "text, logits", "--trace-id", "mine",
        )  # fmt: skip
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertIn(
            "[claim] access level activations, at most activation_diagnostic\n[missing] text\n"
            "[generated] ",
            outcome.out,
        )
        trace, arrays = load_trace(self.folder / "t" / "mine.json")
        self.assertEqual(trace.trace_id, "mine")
        self.assertEqual(len(arrays), 8)
        self.assertEqual(self.run_it("--quiet").out, "")

    def test_refuses_what_cannot_be_asked(self) -> None:
        for told, more, code in (
            ("--trace-id: '../x'", ("--trace-id", "../x"), 2),
            ("requested_artifacts: 'x' is unknown", ("--request", "x"), 2),
            ("collect_layers: layer 9 does not exist", ("--collect-layer", 9), 2),
            ("requested artifacts were not emitted", ("--request", "text", "--strict"), 1),
            ("no chat template", ("--apply-chat-template",), 2),
        ):
            outcome = self.run_it(*more)
            self.assertEqual((outcome.code, outcome.out), (code, ""))
            self.assertIn(told, outcome.err)
        self.assertFalse((self.folder / "t").exists())
        outcome = run_command(
            "trace-model", "--model", "http://x", "--prompt", "x", "--out", self.folder
        )
        self.assertEqual(outcome.code, 2)
        outcome = run_command(
            "trace-model", "--model", self.folder / "none", "--prompt", "x", "--out", self.folder
        )
        self.assertEqual(outcome.code, 5)
        with self.assertRaisesRegex(ValueError, "backend: 'max' is unknown"):
            open_engine("toy", backend="max")


class Sweep(CommandCase):
    def sweep(self, *more: object, model: object = "toy") -> Outcome:
        return run_command("trace-sweep", "--model", model, "--prompt", "hi", *more)

    def test_measures_and_fits_nothing(self) -> None:
        path = self.folder / "sweep.json"
        outcome = self.sweep(
            "--repeat-counts", "1,3", "--samples", 2, "--allow-cpu-fallback", "--output", path
        )
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertIn("fit: not_computed", outcome.out)
        document = json.loads(path.read_text("utf-8"))
        self.assertEqual([point["axis_value"] for point in document["points"]], [2, 8])
        self.assertEqual([point["sample_count"] for point in document["points"]], [2, 2])
        self.assertEqual(document["artifact_kinds"], ["activation", "logits", "tokens"])
        outcome = self.sweep("--samples", 1, "--allow-cpu-fallback", "--local-files-only")
        self.assertEqual(json.loads(outcome.out)["axis"], "token_count")
        one = self.sweep("--samples", 1, "--allow-cpu-fallback", "--output", path)
        self.assertIn(" - ", one.out)
        self.assertEqual(self.sweep("--allow-cpu-fallback", "--quiet").out, "")

    def test_of_a_model_that_fails_ends_with_5(self) -> None:
        with mock.patch.object(ToyEngine, "run_pass", side_effect=IndexError("position 9")):
            outcome = self.sweep("--allow-cpu-fallback")
        self.assertEqual(outcome.code, 5)
        self.assertEqual(
            outcome.err,
            "error: TraceModelError: toy: failed while running: IndexError: position 9\n",
        )

    def test_without_an_accelerator_ends_with_3(self) -> None:
        self.assertEqual(self.sweep().code, 3)
        self.fakes()
        model = write_fake_model(self.folder / "m")
        self.assertEqual(self.sweep(model=model).code, 3)
        self.assertEqual(self.sweep("--allow-cpu-fallback", model=model).code, 0)
        with replaced_modules({"torch": None}):
            self.assertEqual(self.sweep(model=model).code, 2)

    def test_uses_an_accelerator(self) -> None:
        self.fakes(devices=("cuda",))
        outcome = self.sweep(model=write_fake_model(self.folder / "m"))
        self.assertEqual(outcome.code, 0)
        document = json.loads(outcome.out)
        self.assertEqual(document["device"], {"kind": "cuda", "label": "cuda:0"})
        self.assertEqual(document["points"][0]["max_memory_bytes"], 1234)
        self.assertEqual(document["points"][0]["sync_points"], 6)

    def test_refuses_counts_that_are_none(self) -> None:
        for more in (
            ("--repeat-counts", "1,x"), ("--repeat-counts", "0"), ("--repeat-counts", ""),
            ("--repeat-counts", "1,1"), ("--samples", 0),
            ("--collect-layer", 9, "--allow-cpu-fallback"),
        ):  # fmt: skip
            self.assertEqual(self.sweep(*more).code, 2)


class Reports(unittest.TestCase):
    def test_show_no_control_characters(self) -> None:
        text = format_trace(TraceResult("a\x1b[31m\nb", errors=("x\x07",)))
        self.assertIn("Prompt: a\\x1b[31m\\x0ab", text)
        self.assertIn("- x\\x07", text)
        self.assertIn("Overall: ⚠️ INCOMPLETE", text)


if __name__ == "__main__":
    unittest.main()
