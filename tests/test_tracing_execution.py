from __future__ import annotations

import json
import unittest
from typing import Any

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.tracing import (
    DeviceRef,
    HookCapture,
    Intervention,
    RuntimeCapability,
    RuntimeTraceResult,
    StageProfile,
    ToyEngine,
    Trace,
    TraceArtifact,
    TraceRequest,
    TraceSpan,
    access_level_of_trace,
    capture_model,
    claim_summary,
    compare_captures,
    declared_capability,
    evidence_refs,
    load_trace,
    missing_evidence,
    profile_summary,
    profile_sweep,
    report_summary,
    run_trace,
    trace_model,
    write_captures,
    write_trace,
)
from moe_weights.tracing.array_files import STORED_DTYPES, storable
from moe_weights.tracing.capture_set import join_keys_and_values
from moe_weights.tracing.documents import load_schema
from tests.support.runs import temporary_folder
from tests.support.traces import PROMPT_IDS, toy_captures, toy_trace, toy_with_changed_expert

CPU = DeviceRef(kind="cpu", label="cpu")


def capability(**levels: str) -> RuntimeCapability:
    return RuntimeCapability(name="numpy", device_kinds=("cpu",), **levels)


class Execution(unittest.TestCase):
    def test_of_one_pass_has_the_spans_of_the_contract(self) -> None:
        trace = toy_trace(decode_steps=0, collect_layers=(), return_logprobs=True).trace
        self.assertEqual(
            [span.span_id for span in trace.spans],
            [
                "span.0.tokenize", "span.1.prepare_batch", "span.2.forward", "span.3.lm_head",
                "span.4.observe",
            ],
        )  # fmt: skip
        self.assertEqual([a.artifact_id for a in trace.artifacts], ["tokens", "logits", "logprobs"])
        self.assertEqual(trace.artifacts[1].producer_span_id, "span.3.lm_head")
        self.assertEqual(trace.spans[1].input_artifact_ids, ("tokens",))

    def test_with_decode_steps_has_a_span_for_each(self) -> None:
        result = toy_trace(decode_steps=2)
        names = [span.name for span in result.trace.spans]
        self.assertEqual(names[2:6], ["prefill", "forward", "lm_head", "observe"])
        self.assertEqual(names[6:], ["decode", "observe"] * 2)
        prefill = result.trace.spans[2]
        self.assertIsNone(prefill.profile)
        self.assertEqual(prefill.metadata["covers"], ["span.3.forward", "span.4.lm_head"])
        self.assertEqual(len(result.generated_ids), 2)
        self.assertIn("activation.layer_2.step_1", result.arrays)

    def test_decodes_as_one_long_prompt_would(self) -> None:
        result = toy_trace(decode_steps=2)
        ids = (*b"hello", *result.generated_ids)
        whole = toy_trace(prompt_ids=tuple(i % 64 for i in ids), decode_steps=0)
        np.testing.assert_allclose(
            result.arrays["logits.step_1"][-1], whole.arrays["logits"][-1], atol=1e-5
        )
        np.testing.assert_allclose(
            np.exp(toy_trace(return_logprobs=True).arrays["logprobs"]).sum(-1), 1, atol=1e-5
        )

    def test_of_given_ids_tokenises_nothing(self) -> None:
        trace = toy_trace(prompt_ids=(1, 2), decode_steps=0).trace
        self.assertEqual(trace.spans[0].name, "prepare_batch")
        self.assertEqual(trace.artifacts_by_kind("tokens"), ())
        copies = [span.profile.host_device_copies for span in trace.spans if span.profile]
        self.assertEqual((copies[0], sum(copies)), (1, 1))
        self.assertEqual(sum(span.profile.sync_points for span in trace.spans if span.profile), 0)

    def test_intervenes_before_it_collects(self) -> None:
        change = Intervention(name="silence", layer=0, scale=0, shift=2)
        result = toy_trace(interventions=(change,))
        self.assertTrue((result.arrays["activation.layer_0"] == 2).all())
        (artifact,) = result.trace.artifacts_by_kind("intervention_result")
        self.assertEqual(artifact.artifact_id, "intervention.0")
        self.assertEqual(artifact.metadata["name"], "silence")
        self.assertEqual(artifact.producer_span_id, "span.3.forward")

    def test_records_what_was_asked_for_and_is_missing(self) -> None:
        kinds = ("text", "tokens", "weight_snapshot", "profile", "logprobs", "activation")
        result = toy_trace(requested_artifacts=kinds, collect_layers=())
        metadata = result.trace.metadata
        self.assertEqual(metadata["requested_artifacts"], list(kinds))
        self.assertEqual(metadata["missing_requested_artifacts"], ["text", "activation"])
        self.assertEqual(metadata["unsupported_requested_artifacts"], ["text"])
        weights = result.trace.artifacts_by_kind("weight_snapshot")
        self.assertEqual(weights[0].metadata["n_parameters"], 3 * 256 + 64 + 4 * 256)
        self.assertEqual(len(weights), 3)
        twice = toy_trace(requested_artifacts=("weight_snapshot",), collect_layers=(1, 1))
        (weights,) = twice.trace.artifacts_by_kind("weight_snapshot")
        self.assertEqual(weights.artifact_id, "weights.layer_1")
        with self.assertRaises(InvalidDataError):
            trace_model(
                ToyEngine(),
                TraceRequest(trace_id="t", prompt_ids=(1,), requested_artifacts=("text",)),
                strict=True,
            )

    def test_emits_nothing_that_its_backend_does_not_declare(self) -> None:
        engine = ToyEngine(capability=capability(logprobs="full"))
        request = TraceRequest(
            trace_id="t",
            prompt_ids=(1,),
            collect_layers=(0,),
            return_logprobs=True,
            interventions=(Intervention(name="a", layer=0, scale=0),),
            requested_artifacts=("weight_snapshot", "logits"),
        )
        trace = trace_model(engine, request).trace
        self.assertEqual(trace.artifact_kinds, ("logprobs",))
        self.assertEqual(
            trace.metadata["unsupported_requested_artifacts"], ["weight_snapshot", "logits"]
        )
        nothing = ToyEngine(capability=capability())
        names = [span.name for span in trace_model(nothing, request).trace.spans]
        self.assertNotIn("observe", names)

    def test_refuses_layers_and_tokens_that_are_not_there(self) -> None:
        for told, fields in {
            "collect_layers: layer 3 does not exist; toy has layers 0 to 2": {
                "collect_layers": (3,)
            },
            "interventions: layer 9": {"interventions": (Intervention(name="a", layer=9),)},
            "prompt_ids: 64 is outside the vocabulary of toy, 0 to 63": {"prompt_ids": (64,)},
        }.items():
            with self.assertRaises(InvalidDataError) as caught:
                toy_trace(**fields)
            self.assertIn(told, str(caught.exception))
        with self.assertRaises(UsageError):
            toy_trace(apply_chat_template=True)
        with self.assertRaisesRegex(InvalidDataError, "it has no tokens"):
            capture_model(ToyEngine(), ())


class TraceResults(unittest.TestCase):
    def test_answer_their_own_request(self) -> None:
        result = toy_trace()
        request = TraceRequest(trace_id="other", prompt_ids=(1,))
        for told, fields in {
            'trace id "toy" is not the request\'s, "other"': {"request": request},
            "runtime trace contains logits but backend declares logits unsupported": {
                "capability": capability(activations="full")
            },
            'array "x" of shape [1]': {"arrays": {"x": np.zeros(1)}},
        }.items():
            with self.assertRaises(InvalidDataError) as caught:
                RuntimeTraceResult(
                    **{
                        "request": result.request,
                        "capability": result.capability,
                        "trace": result.trace,
                        "arrays": {},
                        **fields,
                    }
                )
            self.assertIn(told, str(caught.exception))

    def test_are_written_whole_or_refused(self) -> None:
        folder = temporary_folder(self)
        for trace_id in ("../up", "a/b", ".hidden", "a.tmp-1", "x" * 129):
            trace = Trace(trace_id=trace_id, device=CPU)
            with self.assertRaises(InvalidDataError):
                write_trace(folder, trace)
        trace = Trace(trace_id="t", device=CPU)
        with self.assertRaises(InvalidDataError):
            write_trace(folder, trace, {"x": np.zeros(1)})
        with self.assertRaises(InvalidDataError):
            write_captures(folder / "x.npz", toy_captures())
        self.assertEqual(list(folder.iterdir()), [])
        self.assertIsNone(json.loads(write_trace(folder, trace).read_text())["arrays_file"])

    def test_hold_no_array_that_an_artifact_describes_otherwise(self) -> None:
        folder = temporary_folder(self)
        for metadata, told in (
            (
                {"summary": {"max": 2.0}},
                (
                    "$.arrays.a.summary.max: semantic/summary_conflict: the artifact's metadata "
                    "says 2.0"
                ),
            ),
            (
                {"dtype": "float64"},
                "$.arrays.a.dtype: semantic/dtype_conflict: the artifact's metadata says float64",
            ),
        ):
            artifact = TraceArtifact(artifact_id="a", kind="other", shape=(2,), metadata=metadata)
            trace = Trace(trace_id="t", device=CPU, artifacts=(artifact,))
            with self.assertRaises(InvalidDataError) as caught:
                write_trace(folder, trace, {"a": np.ones(2, np.float32)})
            self.assertEqual(str(caught.exception), told)
            self.assertFalse((folder / "t.json").exists())
        notes = {"summary": {"max": "nothing special"}, "dtype": "bfloat16"}
        artifact = TraceArtifact(artifact_id="a", kind="other", shape=(2,), metadata=notes)
        trace = Trace(trace_id="t", device=CPU, artifacts=(artifact,))
        path = write_trace(folder, trace, {"a": np.ones(2, np.float32)})
        self.assertEqual(load_trace(path)[0].artifacts[0].metadata, notes)

    def test_store_any_real_dtype(self) -> None:
        import ml_dtypes

        for narrow in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
            stored = storable(np.array([1.5, -2], narrow))
            self.assertEqual((stored.dtype, stored.tolist()), (np.float32, [1.5, -2.0]))
        for dtype in STORED_DTYPES:
            self.assertEqual(storable(np.zeros(1, dtype)).dtype.name, dtype)
        schema = load_schema("capture.v1")
        self.assertEqual(
            set(schema["$defs"]["array"]["properties"]["dtype"]["enum"]), STORED_DTYPES
        )
        self.assertEqual(storable(np.zeros((), ">f8")).dtype.str, "<f8")
        for array in (np.array(["a"]), np.array([1j]), np.zeros(1, [("a", "f4")])):
            with self.assertRaises(InvalidDataError):
                storable(array)
        with self.assertRaises(InvalidDataError):
            storable(np.zeros(2, "V3"))


class Evidence(unittest.TestCase):
    def test_narrows_with_what_is_missing(self) -> None:
        toy = declared_capability("numpy")
        for level, fields in {
            "activations": {},
            "weights": {"collect_layers": (), "requested_artifacts": ("weight_snapshot",)},
            "logprobs": {"collect_layers": ()},
            "black_box": {"collect_layers": (), "return_logits": False},
        }.items():
            trace = toy_trace(**fields).trace
            self.assertEqual(access_level_of_trace(trace), level)
            self.assertEqual(claim_summary(trace, toy)["access_level"], level)
        self.assertIn("Runtime logits not collected", missing_evidence(trace, toy))
        self.assertIn(
            "Runtime logits not collected (max declares them unsupported)",
            missing_evidence(trace, declared_capability("max")),
        )
        self.assertIn(
            "Runtime logits are only partially supported by numpy",
            missing_evidence(trace, capability(logits="partial")),
        )

    def test_can_be_cited(self) -> None:
        trace = toy_trace(
            return_logprobs=True, requested_artifacts=("weight_snapshot",), decode_steps=0
        ).trace
        refs = evidence_refs(trace, declared_capability("numpy"), "run1")
        self.assertEqual(
            [ref.ref_id for ref in refs],
            [
                f"run1.{what}"
                for what in (
                    "capabilities", "trace", "tokens", "logits", "logprobs", "activations",
                    "weights",
                )
            ],
        )  # fmt: skip
        self.assertEqual(refs[0].kind, "run_report")
        self.assertEqual(refs[3].description, "Runtime logits with shapes [[5, 64]].")

    def test_text_is_the_same_whatever_the_clock_said(self) -> None:
        first, second = toy_trace().trace, toy_trace().trace
        toy = declared_capability("numpy")
        self.assertEqual(report_summary(first), report_summary(second))
        self.assertEqual(claim_summary(first, toy), claim_summary(second, toy))
        self.assertNotIn("duration", json.dumps(report_summary(first)))


def profiled(trace_id: str, duration_s: float, *, kind: str = "logits", **fields: Any) -> Trace:
    return Trace(
        trace_id=trace_id,
        device=CPU,
        spans=(
            TraceSpan(
                span_id="s",
                name="n",
                profile=StageProfile(name="n", duration_s=duration_s, **fields),
            ),
            TraceSpan(span_id="u", name="u"),
        ),
        artifacts=(TraceArtifact(artifact_id="a", kind=kind),) if kind else (),
    )


class ProfileSummaries(unittest.TestCase):
    def test_add_and_take_the_largest(self) -> None:
        profiles = (
            StageProfile(name="a", duration_s=1, token_count=4, input_bytes=8, memory_bytes=1),
            StageProfile(name="b", duration_s=3, token_count=8, input_bytes=2, sync_points=2),
        )
        trace = Trace(
            trace_id="t",
            device=CPU,
            spans=tuple(
                TraceSpan(span_id=str(n), name="n", profile=p) for n, p in enumerate(profiles)
            ),
        )
        document = profile_summary(trace).to_dict()
        self.assertEqual(document["total_duration_s"], 4)
        self.assertEqual(document["token_count"], 8)
        self.assertEqual(document["tokens_per_second"], 2)
        self.assertEqual((document["input_bytes"], document["output_bytes"]), (10, None))
        self.assertEqual((document["peak_memory_bytes"], document["sync_points"]), (1, 2))

    def test_say_nothing_about_what_was_not_measured(self) -> None:
        summary = profile_summary(Trace(trace_id="t", device=CPU))
        self.assertIsNone(summary.total_duration_s)
        self.assertIsNone(summary.tokens_per_second)
        self.assertIsNone(profile_summary(profiled("t", 0, token_count=3)).tokens_per_second)


class Sweeps(unittest.TestCase):
    def test_group_and_sort_by_the_axis(self) -> None:
        traces = [
            profiled("a", 2, token_count=8, sync_points=1),
            profiled("b", 1, token_count=4),
            profiled("c", 4, token_count=8, memory_bytes=7),
        ]
        document = profile_sweep(traces).to_dict()
        self.assertEqual([point["axis_value"] for point in document["points"]], [4, 8])
        point = document["points"][1]
        self.assertEqual(point["trace_ids"], ["a", "c"])
        duration = point["duration_s"]
        self.assertEqual(
            [duration[name] for name in ("mean", "min", "max", "samples")], [3, 2, 4, [2, 4]]
        )
        self.assertAlmostEqual(duration["sd"], 2**0.5)
        self.assertIsNone(document["points"][0]["duration_s"]["sd"])
        self.assertEqual((point["max_memory_bytes"], point["sync_points"]), (7, 1))
        self.assertEqual(document["metadata"]["fit"], "not_computed")
        self.assertTrue(document["metadata"]["fit_reason"])

    def test_without_rates_have_none(self) -> None:
        sweep = profile_sweep([profiled("a", 0, batch_size=1)], axis="batch_size")
        self.assertIsNone(sweep.to_dict()["points"][0]["tokens_per_second"])

    def test_refuse_what_does_not_compare(self) -> None:
        a = profiled("a", 1, token_count=1)
        for told, traces, axis in (
            ("traces: there are none", [], "token_count"),
            ("axis: 'x' is unknown", [a], "x"),
            ('trace "a": no span has a queue_depth', [a], "queue_depth"),
            ('traces: "a" occurs twice', [a, a], "token_count"),
            ("none holds an artifact", [profiled("a", 1, kind="")], "token_count"),
            (
                "trace \"b\": holds ['text'], but \"a\" holds ['logits']",
                [a, profiled("b", 1, kind="text", token_count=1)],
                "token_count",
            ),
        ):
            with self.assertRaises(InvalidDataError) as caught:
                profile_sweep(traces, axis=axis)
            self.assertIn(told, str(caught.exception))
        other = profiled("b", 1, kind="text", token_count=1)
        sweep = profile_sweep([a, other], require_stable_artifacts=False)
        self.assertEqual(sweep.artifact_kinds, ("logits", "text"))


def pair(left: Any, right: Any, **options: Any) -> Any:
    (comparison,) = compare_captures(
        HookCapture("prefill", 0, logits=np.asarray(left)),
        HookCapture("prefill", 0, logits=np.asarray(right)),
        **options,
    )
    return comparison


class Decisions(unittest.TestCase):
    def test_values_that_are_not_finite_diverge(self) -> None:
        for left, right, count in (
            ([np.nan], [1.0], 1),
            ([np.nan], [np.nan], 2),
            ([np.inf], [np.inf], 2),
        ):
            comparison = pair(left, right)
            self.assertTrue(comparison.diverged)
            self.assertEqual((comparison.reason, comparison.n_non_finite), ("non_finite", count))
            self.assertIsNone(comparison.to_dict()["max_abs_diff"])

    def test_empty_arrays_of_one_shape_match(self) -> None:
        self.assertFalse(pair(np.zeros((0, 4)), np.zeros((0, 4))).diverged)
        self.assertEqual(pair(np.zeros((0, 4)), np.zeros((0, 5))).reason, "shape_mismatch")

    def test_zero_arrays_match_and_are_flagged(self) -> None:
        comparison = pair([0.0], [0.0])
        self.assertFalse(comparison.diverged)
        self.assertTrue(comparison.zero_norm)
        self.assertEqual((comparison.cosine_similarity, comparison.max_rel_diff), (0, 0))

    def test_extreme_values_keep_their_numbers(self) -> None:
        comparison = pair([1e308], [-1e308])
        self.assertEqual((comparison.reason, comparison.cosine_similarity), ("overflow", -1))
        comparison = pair([1e-300, 0], [1e-300, 1e-300])
        self.assertAlmostEqual(comparison.cosine_similarity, 0.5**0.5)
        self.assertEqual(pair(np.float16([1]), np.int8([3])).max_abs_diff, 2)

    def test_may_be_relative(self) -> None:
        comparison = pair([100.0, 1], [101.0, 1], threshold=0.02, relative=True)
        self.assertFalse(comparison.diverged)
        self.assertEqual((comparison.max_rel_diff, comparison.measure), (0.01, "relative"))
        self.assertTrue(pair([0.0], [1e-9], threshold=0.5, relative=True).diverged)

    def test_long_arrays_are_compared_to_their_end(self) -> None:
        left = np.zeros(600_000, np.float32)
        right = left.copy()
        right[-1] = 1
        comparison = pair(left, right)
        self.assertEqual(comparison.max_abs_diff, 1)
        self.assertAlmostEqual(comparison.mean_abs_diff, 1 / 600_000)

    def test_refuse_what_cannot_be_compared(self) -> None:
        with self.assertRaises(InvalidDataError):
            compare_captures(HookCapture("prefill", 0), HookCapture("prefill", 1))
        for threshold in (-1.0, np.nan, np.inf):
            with self.assertRaises(UsageError):
                pair([1.0], [1.0], threshold=threshold)
        for array in (["a"], [1j]):
            with self.assertRaises(InvalidDataError):
                pair(array, array)
        with self.assertRaises(InvalidDataError):
            pair(np.zeros(2, "V3"), np.zeros(2, "V3"))

    def test_joined_caches_keep_every_value(self) -> None:
        keys, values = np.ones((2, 3, 4)), np.zeros((2, 3, 5))
        self.assertEqual(join_keys_and_values(keys, keys).shape, (2, 2, 3, 4))
        self.assertEqual(join_keys_and_values(keys, values).shape, (2, 3, 9))
        self.assertEqual(join_keys_and_values(keys, values[:1]).shape, (39,))


class Failing:
    def on_prefill(self, layer: int) -> HookCapture | None:
        if layer == 1:
            raise OSError("gone")
        return HookCapture("prefill", layer, logits=np.array(["x"]))

    def on_kv_transfer(self, layer: int) -> HookCapture | None:
        return None

    def on_decode_step(self, layer: int, step: int) -> HookCapture | None:
        return None


class Hooks(unittest.TestCase):
    def test_that_fail_are_told_and_the_run_goes_on(self) -> None:
        result = run_trace(Failing(), Failing(), "p", num_layers=2)
        self.assertEqual(
            result.errors,
            (
                "prefill layer 0: array of <U1: its elements are no real numbers",
                "baseline, prefill layer 1: OSError: gone",
                "target, prefill layer 1: OSError: gone",
            ),
        )
        self.assertEqual(result.verdict, "error")
        with self.assertRaises(UsageError):
            run_trace(Failing(), Failing(), "p", num_layers=-1)

    def test_of_changed_models_name_the_changed_layer_first(self) -> None:
        baseline = toy_captures(decode_steps=2)
        for layer in range(3):
            changed = toy_with_changed_expert(layer, self.used_expert(layer))
            target = toy_captures(changed, decode_steps=2, decode_ids=baseline.decode_ids)
            result = run_trace(
                baseline.to_hook(), target.to_hook(), "p", num_layers=3, decode_steps=2
            )
            first = result.first_divergence
            assert first is not None
            self.assertEqual(
                (first.hook_point, first.layer, first.step, first.field_name),
                ("prefill", layer, None, "hidden_states"),
            )
            document = result.to_dict()
            self.assertEqual(document["claim"]["access_level"], "activations")

    def used_expert(self, layer: int) -> int:
        plain = toy_captures()
        for expert in range(4):
            other = toy_captures(toy_with_changed_expert(layer, expert))
            left, right = (side.to_hook().on_prefill(layer) for side in (plain, other))
            assert left is not None and right is not None
            if compare_captures(left, right)[0].diverged:
                return expert
        raise AssertionError(f"no expert of layer {layer} is used by {PROMPT_IDS}")


if __name__ == "__main__":
    unittest.main()
