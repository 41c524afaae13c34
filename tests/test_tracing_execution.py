from __future__ import annotations

import json
import unittest

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.tracing import (
    DeviceRef,
    Intervention,
    RuntimeCapability,
    RuntimeTraceResult,
    ToyEngine,
    Trace,
    TraceArtifact,
    TraceRequest,
    access_level_of_trace,
    capture_model,
    claim_summary,
    declared_capability,
    evidence_refs,
    load_trace,
    missing_evidence,
    report_summary,
    trace_model,
    write_captures,
    write_trace,
)
from moe_weights.tracing.array_files import STORED_DTYPES, storable
from moe_weights.tracing.documents import load_schema
from tests.support.runs import temporary_folder
from tests.support.traces import toy_captures, toy_trace

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


if __name__ == "__main__":
    unittest.main()
