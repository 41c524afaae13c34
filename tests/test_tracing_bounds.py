"""Numbers and texts that no run has: too large, not finite, booleans, half characters."""

from __future__ import annotations

import contextlib
import io
import json
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.cli import main
from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.tracing import (
    CaptureSet,
    DocumentError,
    HookCapture,
    HookPoint,
    Intervention,
    MockInferenceHook,
    StageProfile,
    ToyEngine,
    Trace,
    TraceRequest,
    TraceSpan,
    capture_model,
    load_captures,
    load_trace,
    profile_summary,
    run_trace,
    write_captures,
)
from moe_weights.tracing.comparison import check_threshold
from moe_weights.tracing.vocabulary import DeviceKind, DeviceRef
from tests.support.runs import temporary_folder
from tests.support.traces import change_json, write_toy_captures, write_toy_trace

LARGEST = 2**53 - 1
CPU = DeviceRef(kind=DeviceKind.CPU, label="cpu")


class DocumentCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)

    def refused(self, path: Path, load: Callable[[Path], object]) -> list[str]:
        with self.assertRaises(DocumentError) as caught:
            load(path)
        return [f"{problem.code} @ {problem.place}" for problem in caught.exception.problems]


class SavedCaptures(DocumentCase):
    def changed(self, change: Callable[[Any], None]) -> list[str]:
        path = write_toy_captures(self.folder)
        change_json(path, change)
        return self.refused(path, load_captures)

    def test_claim_no_more_than_a_hundred_thousand_layers(self) -> None:
        for count in (100_001, 10**8, 10**30):
            found = self.changed(lambda document, count=count: document.update(num_layers=count))
            self.assertEqual(found, ["schema @ $.num_layers"])
        path = write_toy_captures(self.folder)
        change_json(path, lambda document: document.update(num_layers=100_000))
        self.assertEqual(load_captures(path).num_layers, 100_000)

    def test_have_token_ids_that_their_logits_have_a_place_for(self) -> None:
        for name in ("prompt_ids", "decode_ids"):
            for token_id, code in (
                (64, "token_id_out_of_range"),  # the toy model has tokens 0 to 63
                (LARGEST, "token_id_out_of_range"),
                (LARGEST + 1, "schema"),
                (2**63, "schema"),
                (10**400, "schema"),
                (-1, "schema"),
            ):

                def change(document: Any, name: str = name, token_id: int = token_id) -> None:
                    document[name][1] = token_id

                with self.subTest(name, token_id=token_id):
                    self.assertEqual(self.changed(change), [f"{code} @ $.{name}[1]"])

    def test_without_logits_have_token_ids_that_every_reader_keeps(self) -> None:
        place = HookPoint.PREFILL
        for token_id in (LARGEST, LARGEST + 1, True, 2**70):
            fields: dict[str, Any] = {
                "num_layers": 1,
                "prompt_ids": (token_id,),
                "captures": (HookCapture(place, 0, hidden_states=np.zeros((1, 2))),),
            }
            if token_id == LARGEST:
                path = write_captures(self.folder / "a.json", CaptureSet(**fields))
                self.assertEqual(load_captures(path).prompt_ids, (LARGEST,))
            else:
                with self.assertRaisesRegex(InvalidDataError, "prompt_ids: "):
                    CaptureSet(**fields)

    def test_skip_no_step_that_no_token_was_fed_at(self) -> None:
        def change(document: Any) -> None:
            document["decode_ids"] = []
            document["captures"][-1]["step"] = 10**15

        path = write_toy_captures(self.folder)
        place = f"$.captures[{len(load_captures(path).captures) - 1}].step"
        self.assertEqual(self.changed(change), [f"step_out_of_range @ {place}"])

    def test_with_a_summary_beyond_the_largest_float_are_refused(self) -> None:
        def change(document: Any) -> None:
            document["captures"][0]["arrays"]["hidden_states"]["summary"]["max"] = 10**400

        self.assertEqual(
            self.changed(change),
            ["summary_mismatch @ $.captures[0].arrays.hidden_states.summary.max"],
        )


class SavedTraces(DocumentCase):
    def test_have_profiles_that_a_run_can_have(self) -> None:
        for name, most in (
            ("duration_s", 1e9),
            ("memory_bytes", LARGEST),
            ("token_count", LARGEST),
            ("input_bytes", LARGEST),
            ("sync_points", LARGEST),
        ):
            for value, is_good in ((most, True), (most + 1, False), (10**30, False), (1e30, False)):
                path = write_toy_trace(self.folder)
                spans = json.loads(path.read_text("utf-8"))["spans"]
                number = next(n for n, span in enumerate(spans) if "profile" in span)

                def change(
                    document: Any, number: int = number, name: str = name, value: float = value
                ) -> None:
                    document["spans"][number]["profile"][name] = value

                change_json(path, change)
                with self.subTest(name, value=value):
                    if is_good:
                        load_trace(path)
                    else:
                        place = f"$.spans[{number}].profile.{name}"
                        self.assertEqual(self.refused(path, load_trace), [f"schema @ {place}"])


class Values(unittest.TestCase):
    def test_of_a_profile_are_refused_with_their_field(self) -> None:
        large = "the largest that is taken"
        for fields, told in (
            ({"duration_s": True}, "duration_s: True is not a number"),
            ({"duration_s": 2e9}, f"duration_s: 2000000000.0 is above 1e+09, {large}"),
            (
                {"duration_s": 10**400},
                "duration_s: an integer of 1329 bits is not a finite number of at least 0",
            ),
            ({"memory_bytes": 10**30}, f"memory_bytes: {10**30} is above {LARGEST}, {large}"),
            (
                {"memory_bytes": 2**300},
                f"memory_bytes: an integer of 301 bits is above {LARGEST}, {large}",
            ),
            ({"name": "a\udcff"}, "name: character 1 is no Unicode text; give it as UTF-8"),
        ):
            with self.subTest(told), self.assertRaises(InvalidDataError) as caught:
                StageProfile(**{"name": "forward", "duration_s": 1.0, **fields})  # type: ignore[arg-type]
            self.assertEqual(str(caught.exception), f"profile.{told}")

    def test_that_are_too_short_for_a_rate_give_none(self) -> None:
        profile = StageProfile(name="forward", duration_s=5e-324, token_count=5)
        span = TraceSpan(span_id="s", name="forward", profile=profile)
        summary = profile_summary(Trace(trace_id="t", device=CPU, spans=(span,)))
        self.assertEqual((summary.token_count, summary.tokens_per_second), (5, None))

    def test_of_an_intervention_are_refused_before_anything_runs(self) -> None:
        for fields in ({"scale": float("nan")}, {"shift": float("inf")}, {"scale": True}):
            change = Intervention(name="a", layer=0, **fields)  # type: ignore[arg-type]
            (name,) = fields
            with self.assertRaisesRegex(InvalidDataError, rf"interventions\.{name}: "):
                TraceRequest(trace_id="t", input_text="a", interventions=(change,))

    def test_of_mocks_and_comparisons_are_refused(self) -> None:
        for fields in (
            {"noise_scale": float("nan")},
            {"noise_scale": float("inf")},
            {"noise_scale": -1.0},
            {"noise_scale": True},
            {"num_layers": -1},
            {"num_layers": 100_001},
            {"hidden_dim": True},
            {"seed": -1},
        ):
            with self.subTest(fields), self.assertRaises(UsageError):
                MockInferenceHook(**fields)  # type: ignore[arg-type]
        hook = MockInferenceHook()
        for more in ({"num_layers": True}, {"num_layers": 100_001}, {"decode_steps": -1}):
            with self.subTest(more), self.assertRaises(UsageError):
                run_trace(hook, hook, "a", **more)  # type: ignore[arg-type]
        with self.assertRaises(UsageError):
            check_threshold(True)
        with self.assertRaises(InvalidDataError):
            capture_model(ToyEngine(), (1,), decode_steps=-1)

    def test_of_notes_are_text_of_a_few_levels(self) -> None:
        deep: dict[str, Any] = {}
        for _ in range(40):
            deep = {"a": [deep]}
        endless: list[Any] = []
        endless.append(endless)
        for notes, told in (
            ({"a": ["b\udcff"]}, "metadata.a[0]: character 1 is no Unicode text"),
            ({"\udcff": 1}, "metadata: character 0 is no Unicode text"),
            (deep, "nested deeper than 32"),
            ({"a": endless}, "nested deeper than 32"),
        ):
            with self.subTest(told), self.assertRaises(InvalidDataError) as caught:
                TraceRequest(trace_id="t", input_text="a", metadata=notes)  # type: ignore[arg-type]
            self.assertIn(told, str(caught.exception))

    def test_of_prompts_are_text(self) -> None:
        hook = MockInferenceHook()
        for position, name in enumerate(("prompt", "baseline_url", "target_url")):
            texts = ["a", "b", "c"]
            texts[position] = "\udcff"
            with self.assertRaisesRegex(UsageError, f"{name}: character 0 is no Unicode text"):
                run_trace(hook, hook, *texts)  # type: ignore[arg-type]
        with self.assertRaisesRegex(InvalidDataError, "prompt: character 0 is no Unicode text"):
            CaptureSet(num_layers=1, prompt="\udcff")

    def test_of_token_ids_name_the_one_that_is_wrong(self) -> None:
        for ids, wrong in (((1, 64, 2), 64), ((1, -5, 63), -5)):
            with self.assertRaises(InvalidDataError) as caught:
                capture_model(ToyEngine(), ids)
            self.assertEqual(
                str(caught.exception),
                f"prompt_ids: {wrong} is outside the vocabulary of toy, 0 to 63",
            )


class Commands(unittest.TestCase):
    def test_refuse_numbers_and_texts_that_are_none_with_2(self) -> None:
        compare = ["trace", "--baseline", "a", "--target", "b", "--prompt", "p", "--mock"]
        trace = ["trace-model", "--model", "toy", "--out", "never", "--prompt"]
        for line, told in (
            ([*compare, "--noise-scale", "nan"], "'nan' is not a finite number of at least 0"),
            ([*compare, "--noise-scale", "inf"], "'inf' is not a finite number of at least 0"),
            ([*compare, "--noise-scale", "-1"], "'-1' is not a finite number of at least 0"),
            ([*compare, "--noise-scale", "some"], "'some' is not a finite number of at least 0"),
            ([*compare, "--prompt", "a\udcff"], "is no UTF-8 text"),
            ([*compare, "--baseline", "a\udcff"], "is no UTF-8 text"),
            ([*trace, "a\udcff"], "argument --prompt: 'a\\udcff' is no UTF-8 text"),
            (["trace-sweep", "--model", "toy", "--prompt", "\udcff"], "is no UTF-8 text"),
        ):
            told_by = io.StringIO()
            with (
                self.subTest(line),
                contextlib.redirect_stderr(told_by),
                self.assertRaises(SystemExit) as caught,
            ):
                main(line)
            self.assertEqual(caught.exception.code, 2)
            self.assertIn(told, told_by.getvalue())

    def test_compare_no_more_layers_than_there_can_be(self) -> None:
        told_by = io.StringIO()
        with contextlib.redirect_stderr(told_by):
            code = main(
                ["trace", "--baseline", "a", "--target", "b", "--prompt", "p", "--mock",
                 "--num-layers", "999999999999"]
            )  # fmt: skip
        self.assertEqual(code, 2)
        self.assertIn(
            "num_layers: 999999999999 is above 100000, the largest that is taken",
            told_by.getvalue(),
        )


if __name__ == "__main__":
    unittest.main()
