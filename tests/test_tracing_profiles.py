from __future__ import annotations

import unittest
from typing import Any

from moe_weights.errors import InvalidDataError
from moe_weights.tracing import (
    DeviceRef,
    StageProfile,
    Trace,
    TraceArtifact,
    TraceSpan,
    profile_summary,
    profile_sweep,
)

CPU = DeviceRef(kind="cpu", label="cpu")


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


if __name__ == "__main__":
    unittest.main()
