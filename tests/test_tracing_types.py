from __future__ import annotations

import importlib
import math
import pickle
import unittest
from typing import Any

import numpy as np

from moe_weights import tracing
from moe_weights.errors import InvalidDataError
from moe_weights.tracing import (
    STAGES,
    CaptureSet,
    ClaimPolicy,
    DeviceRef,
    DocumentError,
    DocumentProblem,
    HookCapture,
    HookPoint,
    Intervention,
    LoadedModel,
    RuntimeCapability,
    StageProfile,
    Trace,
    TraceArtifact,
    TraceArtifactKind,
    TraceRequest,
    TraceSpan,
    can_claim,
    cannot_claim,
    declared_capability,
    strongest_claim,
)
from moe_weights.tracing.claims import AccessLevel, ClaimStrength, access_level_of_capability
from tests.support.traces import toy_trace

CPU = DeviceRef(kind="cpu", label="cpu")


class Refusals(unittest.TestCase):
    def refused(self, make: Any, *told: str, **fields: Any) -> None:
        with self.assertRaises(ValueError) as caught:
            make(**fields)
        for text in told:
            self.assertIn(text, str(caught.exception))


class Stages(unittest.TestCase):
    def test_of_a_trace_are_those_of_a_comparison(self) -> None:
        names = [span.name for span in toy_trace(decode_steps=1).trace.spans]
        found = [(name, str(STAGES[name])) for name in names if name in STAGES]
        self.assertEqual(
            found, [("prefill", "prefill"), ("forward", "prefill"), ("decode", "decode_step")]
        )
        # The hand-over between host and device is not that between prefill and decode.
        self.assertIn("prepare_batch", names)
        self.assertNotIn(HookPoint.KV_TRANSFER, STAGES.values())


class Requests(Refusals):
    def test_follow_every_rule(self) -> None:
        for told, fields in {
            "trace_id": {"trace_id": " "},
            "input_text": {"input_text": None},
            "prompt_ids": {"prompt_ids": (-1,)},
            "collect_layers": {"collect_layers": (-1,)},
            "collect_layers: True": {"collect_layers": (True,)},
            "requested_artifacts: 'x' is unknown": {"requested_artifacts": ("x",)},
            'requested_artifacts: "logits" occurs twice': {
                "requested_artifacts": ("logits", "logits")
            },
            "return_logprobs": {"return_logits": False, "return_logprobs": True},
            "interventions.name": {"interventions": (Intervention(name=" ", layer=0),)},
            "interventions.layer": {"interventions": (Intervention(name="a", layer=-1),)},
            "decode_steps": {"decode_steps": -1},
            "metadata.a: ndarray is not a JSON value": {"metadata": {"a": np.zeros(2)}},
        }.items():
            with self.subTest(told):
                self.refused(
                    TraceRequest, told, **{"trace_id": "t", "input_text": "hello", **fields}
                )

    def test_of_a_kind_switch_its_flag_on(self) -> None:
        request = TraceRequest(
            trace_id="t",
            prompt_ids=(1,),
            return_logits=False,
            requested_artifacts=("logprobs",),
        )
        self.assertTrue(request.wants_logits)
        self.assertTrue(request.wants_logprobs)
        plain = TraceRequest(trace_id="t", prompt_ids=(1,), return_logits=False)
        self.assertFalse(plain.wants_logits)


class Profiles(Refusals):
    def test_follow_every_rule(self) -> None:
        for told, fields in {
            "profile.name": {"name": ""},
            "profile.duration_s: -1": {"duration_s": -1},
            "profile.duration_s: nan": {"duration_s": math.nan},
            "profile.duration_s: 'x' is not a number": {"duration_s": "x"},
            "profile.memory_bytes": {"memory_bytes": -1},
            "profile.batch_size": {"batch_size": 0.5},
            "profile.sync_points": {"sync_points": -1},
            "profile.host_device_copies": {"host_device_copies": -1},
            "profile.metadata: list is not a mapping": {"metadata": []},
            "profile.metadata.a: inf is not a JSON number": {"metadata": {"a": math.inf}},
            "profile.metadata: key 1 is not a text": {"metadata": {1: 2}},
        }.items():
            with self.subTest(told):
                self.refused(StageProfile, told, **{"name": "n", "duration_s": 0, **fields})

    def test_leave_out_what_was_not_measured(self) -> None:
        document = StageProfile(name="n", duration_s=1, device=CPU, token_count=2).to_dict()
        self.assertEqual(document["device"], {"kind": "cpu", "label": "cpu"})
        self.assertNotIn("memory_bytes", document)

    def test_devices_are_known_ones(self) -> None:
        self.refused(DeviceRef, "device.kind: 'tpu' is unknown", kind="tpu", label="x")
        self.refused(DeviceRef, "device.label", kind="cpu", label="")
        self.assertFalse(CPU.is_accelerator)


class Traces(Refusals):
    def make(self, *, producer: Any = "s", outputs: Any = ("a",), inputs: Any = ()) -> Trace:
        return Trace(
            trace_id="t",
            device=CPU,
            spans=(
                TraceSpan(
                    span_id="s",
                    name="n",
                    output_artifact_ids=outputs,
                    input_artifact_ids=inputs,
                ),
            ),
            artifacts=(
                TraceArtifact(artifact_id="a", kind="logits", producer_span_id=producer),
                TraceArtifact(artifact_id="b", kind="text", producer_span_id="s", shape=[2]),
            ),
        )

    def test_follow_every_rule(self) -> None:
        self.refused(self.make, 'its producer "x" is no span', producer="x")
        self.refused(self.make, '"z" is no artifact', outputs=("z",))
        self.refused(self.make, '"z" is no artifact', inputs=("z",))
        self.refused(self.make, 'input_artifacts: "a" occurs twice', inputs=("a", "a"))
        self.refused(self.make, 'output_artifacts: "a" occurs twice', outputs=("a", "a"))
        span = TraceSpan(span_id="s", name="n")
        artifact = TraceArtifact(artifact_id="a", kind="text")
        other = TraceArtifact(artifact_id="o", kind="text", producer_span_id="s")
        stealing = TraceSpan(span_id="r", name="n", output_artifact_ids=("o",))
        for told, fields in {
            "id": {"trace_id": ""},
            'spans: "s" occurs twice': {"spans": (span, span)},
            'artifacts: "a" occurs twice': {"artifacts": (artifact, artifact)},
            'names "s" as its producer': {"spans": (span, stealing), "artifacts": (other,)},
        }.items():
            self.refused(Trace, told, **{"trace_id": "t", "device": CPU, **fields})
        self.refused(TraceArtifact, "artifact.shape", artifact_id="a", kind="text", shape=(-1,))
        self.refused(TraceArtifact, "producer", artifact_id="a", kind="text", producer_span_id=" ")

    def test_find_artifacts_by_kind(self) -> None:
        trace = self.make()
        self.assertEqual([a.artifact_id for a in trace.artifacts_by_kind("text")], ["b"])
        self.assertEqual(trace.artifact_kinds, ("text", "logits"))
        self.refused(trace.artifacts_by_kind, "kind: 'x' is unknown", kind="x")

    def test_hold_no_tensor(self) -> None:
        for value in (np.zeros(2), [[0.5] * 200] * 2, b"bytes"):
            self.refused(
                TraceArtifact, "holds no tensor", artifact_id="a", kind="text",
                metadata={"values": value},
            )  # fmt: skip

    def test_become_json_of_a_fixed_form(self) -> None:
        document = self.make().to_dict()
        self.assertEqual(list(document), ["id", "device", "spans", "artifacts", "metadata"])
        self.assertEqual(
            document["artifacts"],
            [
                {"id": "a", "kind": "logits", "metadata": {}, "producer_span_id": "s"},
                {
                    "id": "b",
                    "kind": "text",
                    "metadata": {},
                    "producer_span_id": "s",
                    "shape": [2],
                },
            ],
        )
        self.assertEqual(
            list(document["spans"][0]),
            ["id", "name", "input_artifacts", "output_artifacts", "metadata"],
        )


class Capabilities(Refusals):
    def test_are_full_for_mlx_torch_and_the_toy_and_none_for_max(self) -> None:
        for name in ("mlx", "torch", "numpy"):
            capability = declared_capability(name)
            self.assertEqual(capability.support_level("kv_cache"), "full")
            support = capability.to_dict()["artifact_support"]
            self.assertEqual(list(support), list(TraceArtifactKind))
            unsupported = [kind for kind, level in support.items() if level == "unsupported"]
            self.assertEqual(unsupported, ["text", "metric", "report_evidence", "other"])
        nothing = declared_capability("max")
        self.assertEqual(set(nothing.to_dict()["artifact_support"].values()), {"unsupported"})
        self.refused(declared_capability, "backend: 'x' is unknown", name="x")

    def test_derive_what_a_report_asks(self) -> None:
        names = [name for name in dir(RuntimeCapability) if name.startswith("can_")]
        self.assertEqual(len(names), 10)
        torch = declared_capability("torch")
        self.assertEqual([n for n in names if not getattr(torch, n)], ["can_emit_text"])
        self.assertFalse(any(getattr(declared_capability("max"), name) for name in names))
        toy = declared_capability("numpy")
        self.assertFalse(toy.can_profile_sync_points)

    def test_follow_every_rule(self) -> None:
        for told, fields in {
            "backend: 'x'": {"name": "x"},
            "device_kinds: name at least one": {"device_kinds": ()},
            "device_kinds: 'x'": {"device_kinds": ("x",)},
            "logits: 'some'": {"logits": "some"},
        }.items():
            self.refused(
                RuntimeCapability, told, **{"name": "mlx", "device_kinds": ("cpu",), **fields}
            )
        self.refused(declared_capability("mlx").support_level, "feature: 'x'", feature="x")

    def test_belong_to_their_backend(self) -> None:
        self.refused(
            LoadedModel, "is not the backend of its capability", backend="mlx",
            capability=declared_capability("torch"), device=CPU, model_name="m", dtype="x",
            n_layers=1, vocabulary_size=1,
        )  # fmt: skip

    def test_reach_an_access_level(self) -> None:
        def level(**fields: str) -> str:
            return access_level_of_capability(
                RuntimeCapability(name="mlx", device_kinds=("cpu",), **fields)
            )

        self.assertEqual(level(activations="partial", logits="full"), "activations")
        self.assertEqual(level(weight_access="full", logits="full"), "weights")
        self.assertEqual(level(logprobs="full"), "logprobs")
        self.assertEqual(level(), "black_box")


class Claims(Refusals):
    def test_are_bounded_by_access(self) -> None:
        strongest = {str(level): str(strongest_claim(level)) for level in AccessLevel}
        self.assertEqual(
            strongest,
            {
                "single_snapshot": "behavioral_profile",
                "black_box": "black_box_behavioral_diff",
                "paired_outputs": "black_box_behavioral_diff",
                "logprobs": "distributional_diff",
                "weights": "weight_diff",
                "activations": "activation_diagnostic",
                "base_and_modified": "model_change_audit",
                "base_and_transformed": "model_change_audit",
            },
        )
        for level in AccessLevel:
            limit = list(ClaimStrength).index(strongest_claim(level))
            for rank, strength in enumerate(ClaimStrength):
                if rank <= limit:
                    ClaimPolicy(access_level=level, claim_strength=strength)
                else:
                    self.refused(
                        ClaimPolicy, "is stronger than access level", access_level=level,
                        claim_strength=strength,
                    )  # fmt: skip

    def test_narrow_as_evidence_goes_missing(self) -> None:
        for level in AccessLevel:
            self.assertEqual(set(can_claim(level)) & set(cannot_claim(level)), set())
        self.assertLess(len(can_claim("logprobs")), len(can_claim("activations")))
        self.assertIn("say anything about weights", cannot_claim("activations"))
        self.assertEqual(can_claim("weights"), ("say which weights differ and by how much",))
        self.refused(can_claim, "access_level: 'x'", level="x")


class CaptureSets(Refusals):
    def test_follow_every_rule(self) -> None:
        for told, capture in {
            "layer 3 is not one of 0 to 1": HookCapture("prefill", 3),
            "needs its step": HookCapture("decode_step", 0),
            "has no step": HookCapture("prefill", 0, 1),
        }.items():
            self.refused(CaptureSet, told, num_layers=2, captures=(capture,))
        twice = (HookCapture("prefill", 0),) * 2
        self.refused(CaptureSet, "two captures of", num_layers=2, captures=twice)
        self.refused(HookCapture, "capture.hook_point", hook_point="x", layer=0)
        self.refused(HookCapture, "capture.step", hook_point="prefill", layer=0, step=-1)


class PublicNames(unittest.TestCase):
    def test_are_all_there_and_none_is_a_module(self) -> None:
        self.assertLessEqual(set(tracing.__all__), set(dir(tracing)))
        for name in tracing.__all__:
            self.assertIsNotNone(getattr(tracing, name))
            with self.assertRaises(ModuleNotFoundError):
                importlib.import_module(f"moe_weights.tracing.{name}")
        with self.assertRaises(AttributeError):
            tracing.nothing  # noqa: B018

    def test_errors_survive_pickling(self) -> None:
        problem = DocumentProblem(scope="json", code="c", place="$", message="m")
        error = DocumentError("f.json", [problem])
        again = pickle.loads(pickle.dumps(error))
        self.assertEqual((str(again), again.problems), (str(error), (problem,)))
        self.assertEqual(str(error), "f.json: refused, 1 problem\n  $: json/c: m")
        self.assertIsInstance(InvalidDataError("x"), ValueError)


if __name__ == "__main__":
    unittest.main()
