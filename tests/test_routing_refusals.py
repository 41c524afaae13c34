"""What builders, writers, importers and statistics do not take, and what they say about it."""

from __future__ import annotations

import contextlib
import io
import json
import unittest
from pathlib import Path
from typing import Any

from moe_weights.cli import main
from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing import (
    BundleError,
    DeadRule,
    GroupLimit,
    PyTorchRunBundleRecorder,
    build_routed_layer_trace,
    count_events,
    load_run_bundle,
    to_layer_table,
    validate_artifact_schema,
    write_run_bundle,
)
from moe_weights.routing.expert_counts import load_expert_counts
from moe_weights.routing.importers.recorded import RoutedModel, to_choices
from moe_weights.routing.importers.sglang import read_sglang_counts, read_sglang_tokens
from moe_weights.routing.importers.vllm import read_vllm_record
from tests.support.routing_bundles import (
    CREATED_AT,
    make_bundle,
    make_event,
    make_manifest,
    make_routed_bundle,
    make_routed_event,
    sigmoid_layer,
    softmax_layer,
    write_unchecked,
)
from tests.support.runs import temporary_folder


class Builders(unittest.TestCase):
    def test_take_no_boolean_for_a_number(self) -> None:
        for build in (
            lambda: make_manifest(seed=True),
            lambda: make_event(token_id=True),
            lambda: make_event(decode_start_ms=True),
            lambda: make_routed_event(token_id=True),
            lambda: make_routed_event(context_length=False),
            lambda: make_routed_event(pass_start_ms=False),
            lambda: make_routed_event(token_text=7),
            lambda: build_routed_layer_trace(softmax_layer(num_shared_experts=True)),
            lambda: build_routed_layer_trace(softmax_layer(combine_scale=True)),
            lambda: build_routed_layer_trace(softmax_layer(combine_normalised="yes")),
            lambda: build_routed_layer_trace(softmax_layer(layer_index=True)),
            lambda: build_routed_layer_trace(
                sigmoid_layer(group_limit=GroupLimit(num_groups=True, num_selected_groups=1))
            ),
            lambda: build_routed_layer_trace(
                sigmoid_layer(
                    group_limit=GroupLimit(
                        num_groups=4, num_selected_groups=2, masked_score=False
                    )
                )
            ),
            lambda: PyTorchRunBundleRecorder(
                run_id="r", created_at=CREATED_AT, model_id="m", tokenizer_id="t", prompt_text="",
                derivation_version="v", derivation_config_id="c", seed=True,
            ),
            lambda: DeadRule(threshold=True),
            lambda: DeadRule(min_tokens=True),
            lambda: RoutedModel(model_id="m", n_experts=True, moe_layers=(0,)),
        ):  # fmt: skip
            with self.assertRaises(TypeError):
                build()  # type: ignore[no-untyped-call]

    def test_refuse_words_and_numbers_that_are_none(self) -> None:
        for build, told in (
            (
                lambda: build_routed_layer_trace(softmax_layer(router_kind="tanh")),
                "router_kind is 'tanh'; known are softmax, sigmoid, other",
            ),
            (
                lambda: build_routed_layer_trace(softmax_layer(score_dtype="float8")),
                "score_dtype is 'float8'; known are float64, float32, bfloat16, float16",
            ),
            (
                lambda: make_routed_event(phase="sleep"),
                "phase is 'sleep'; known are prefill, decode",
            ),
            (
                lambda: build_routed_layer_trace(softmax_layer(combine_scale=float("nan"))),
                "combine_scale is nan; it must be finite",
            ),
            (
                lambda: make_event(decode_start_ms=10**400),
                "decode_start_ms is an integer of 1329 bits; it must be finite",
            ),
            (lambda: DeadRule(threshold=-1), "threshold is -1; it must be at least 0"),
        ):
            with self.subTest(told), self.assertRaises(InvalidDataError) as caught:
                build()  # type: ignore[no-untyped-call]
            self.assertEqual(str(caught.exception), told)

    def test_refuse_texts_and_versions_that_are_none(self) -> None:
        half = "character 1 is no Unicode text; give it as UTF-8"
        for changes, told in (
            ({"prompt_text": "a\udcff"}, f"prompt_text: {half}"),
            ({"model_id": "a\udcff"}, f"model_id: {half}"),
            ({"prompt_text": None}, "prompt_text must be text, got NoneType"),
            ({"model_id": 7}, "model_id must be text, got int"),
            (
                {"capture_config": [("a", 1)]},
                "capture_config must be a mapping, got list",
            ),
            (
                {"bundle_version": "v0.3.0"},
                "bundle_version is 'v0.3.0'; known are v0.1.0, v0.2.0",
            ),
        ):
            with self.subTest(told), self.assertRaises(UsageError) as caught:
                make_manifest(**changes)
            self.assertEqual(str(caught.exception), told)

    def test_refuse_a_model_whose_layers_make_no_sense(self) -> None:
        for fields, told in (
            ({"moe_layers": ()}, "moe_layers are []; give at least one, ascending"),
            ({"moe_layers": (2, 1)}, "moe_layers are [2, 1]; give at least one, ascending"),
            (
                {"moe_layers": (1, 4), "n_layers": 4},
                "layer 4 has experts, the model has 4 decoder layers (from 0)",
            ),
        ):
            with self.subTest(told), self.assertRaises(UsageError) as caught:
                RoutedModel(model_id="m", n_experts=4, **fields)  # type: ignore[arg-type]
            self.assertEqual(str(caught.exception), told)


class Writing(unittest.TestCase):
    def test_takes_events_in_a_sequence(self) -> None:
        root = temporary_folder(self)
        bundle = make_bundle(derived=False)
        for events, kind in ((None, "NoneType"), ({}, "dict"), ("text", "str"), (7, "int")):
            with self.subTest(kind), self.assertRaises(UsageError) as caught:
                write_run_bundle(root, bundle["manifest"], events, bundle["layout"])  # type: ignore[arg-type]
            self.assertEqual(
                str(caught.exception),
                f"raw_events must be a sequence of events, got {kind}; give [] for none",
            )
        with self.assertRaisesRegex(UsageError, "derived_events must be a sequence of events"):
            write_run_bundle(root, **{**bundle, "derived_events": {}})
        self.assertEqual(list(root.iterdir()), [])


class Versions(unittest.TestCase):
    def refused(self, bundle: dict[str, Any]) -> tuple[str, Path]:
        folder = write_unchecked(temporary_folder(self), bundle)
        with self.assertRaises(BundleError) as caught:
            load_run_bundle(folder)
        (first, *_more) = str(caught.exception).split("\n")[1:]
        return first.removeprefix(f"  {folder}/"), folder

    def test_of_an_event_that_is_of_another_form_are_one_message(self) -> None:
        place = "raw_trace.ndjson:2: schema const: raw_events[1].schema_version:"
        bundle = make_bundle(derived=False)
        bundle["raw_events"][1]["schema_version"] = "raw/v0.2.0"
        self.assertEqual(
            self.refused(bundle)[0],
            f'{place} got "raw/v0.2.0", but the event has the form of raw/v0.1.0; write '
            '"raw/v0.1.0"',
        )
        bundle = make_routed_bundle()
        bundle["raw_events"][1]["schema_version"] = "raw/v0.3.0"
        self.assertEqual(
            self.refused(bundle)[0],
            f'{place} got "raw/v0.3.0", but the event has the form of raw/v0.2.0; write '
            '"raw/v0.2.0"',
        )
        bundle = make_routed_bundle()
        bundle["raw_events"][1] = make_event(1)
        del bundle["raw_events"][1]["schema_version"]
        self.assertEqual(
            self.refused(bundle)[0],
            "raw_trace.ndjson:2: schema required: raw_events[1].schema_version: required key is "
            'missing, but the event has the form of raw/v0.1.0; write "raw/v0.1.0" and put it in a '
            "bundle with manifest/v0.1.0: this one's manifest expects raw/v0.2.0, and versions "
            "never mix",
        )

    def test_that_are_unknown_are_held_against_the_manifests(self) -> None:
        bundle = make_routed_bundle()
        bundle["raw_events"][1] |= {"schema_version": "raw/v0.3.0", "phase": "sleep"}
        folder = write_unchecked(temporary_folder(self), bundle)
        with self.assertRaises(BundleError) as caught:
            load_run_bundle(folder)
        self.assertEqual(
            [issue.message for issue in caught.exception.issues],
            [
                'raw_events[1].phase: expected "prefill" or "decode", got "sleep"',
                'raw_events[1].schema_version: expected "raw/v0.2.0", got "raw/v0.3.0"',
            ],
        )

    def test_that_are_mixed_are_told_with_the_lines_that_say_so(self) -> None:
        bundle = make_bundle(derived=False)
        bundle["raw_events"][1] = make_routed_event(1)
        told, folder = self.refused(bundle)
        self.assertEqual(
            told,
            "raw_trace.ndjson:2: bundle raw_event_schema_version_mismatch: token 1 is raw/v0.2.0, "
            f"the manifest expects raw/v0.1.0 ({folder}/manifest.json), as {folder}/"
            "raw_trace.ndjson:1 is; versions never mix in one bundle: put events of this version "
            "in a bundle with manifest/v0.2.0",
        )

    def test_of_a_payload_alone_are_told_too(self) -> None:
        self.assertEqual(
            validate_artifact_schema("raw_event", make_event() | {"schema_version": 7}),
            [
                (
                    "raw_event.schema_version: got 7, but the event has the form of raw/v0.1.0; "
                    'write "raw/v0.1.0"'
                )
            ],
        )


class Entropies(unittest.TestCase):
    def issues(self, **fields: Any) -> list[str]:
        bundle = make_routed_bundle(1)
        bundle["raw_events"][0]["layers"][0].update(fields)
        folder = write_unchecked(temporary_folder(self), bundle)
        try:
            load_run_bundle(folder)
        except BundleError as error:
            return [issue.code for issue in error.issues]
        return []

    def test_are_those_of_softmax_routers_alone(self) -> None:
        other = {"router_kind": "other", "combine_normalised": None, "combine_scale": None,
                 "not_captured": ["combine_normalised", "combine_scale"]}  # fmt: skip
        self.assertEqual(self.issues(**other), ["distribution_of_other_router"] * 4)
        nothing = dict.fromkeys(("entropy", "normalized_entropy", "top1_prob", "top1_top2_margin"))
        self.assertEqual(self.issues(**other, **nothing), [])

    def test_without_probabilities_are_no_more_than_the_experts_allow(self) -> None:
        alone = {"router_logits": None, "router_probs": None, "topk_probs": None,
                 "not_captured": ["router_logits", "router_probs", "topk_probs"]}  # fmt: skip
        self.assertEqual(self.issues(**alone), [])
        self.assertEqual(self.issues(**alone, entropy=1.4), [
            "entropy_mismatch", "normalized_entropy_mismatch",
        ])  # fmt: skip
        self.assertEqual(self.issues(**alone, normalized_entropy=0.1), [
            "normalized_entropy_mismatch",
        ])  # fmt: skip

    def test_of_which_one_was_not_captured_are_counted_all_the_same(self) -> None:
        event = make_routed_event(0, softmax_layer())
        layer = event["layers"][0]
        layer["normalized_entropy"] = None
        layer["not_captured"].append("normalized_entropy")
        row = to_layer_table(count_events([event]), DeadRule()).values
        self.assertEqual(row["mean_entropy"], [layer["entropy"]])
        self.assertEqual(row["mean_normalized_entropy"], [None])
        self.assertEqual(row["mean_confidence"], [None])


class Counts(unittest.TestCase):
    def test_beyond_what_a_column_holds_are_refused(self) -> None:
        folder = temporary_folder(self)
        for selections, told in (
            ([2**63, 0], "selections must be 2 counts"),
            ([10**400, 0], "selections must be 2 counts"),
            ([2**62, 2**62], "selections add up to more than 9223372036854775807"),
        ):
            layer = {"layer_index": 0, "num_total_experts": 2, "num_active_experts": None,
                     "selections": selections}  # fmt: skip
            payload = {"schema_version": "expert_counts/v0.1.0", "layers": [layer]}
            (folder / "expert_counts.json").write_text(json.dumps(payload), encoding="utf-8")
            with self.subTest(told), self.assertRaisesRegex(InvalidDataError, told):
                load_expert_counts(folder)

    def test_whose_sum_would_go_round_are_refused(self) -> None:
        passes = {"records": [{"global_physical_count": [[2**62]]}] * 4}
        steps = {"logical_count": [[[2**62]]] * 4}
        for dump in (passes, steps):
            with self.assertRaisesRegex(InvalidDataError, "no run selects that often"):
                read_sglang_counts(dump)
        with self.assertRaisesRegex(InvalidDataError, "beyond 64 bits with a sign"):
            read_sglang_counts({"logical_count": [[2**64 - 1]]})
        with self.assertRaisesRegex(InvalidDataError, "beyond 64 bits with a sign"):
            to_choices([[[2**64 - 1]]], "routed_experts")

    def test_of_requests_start_at_0(self) -> None:
        record = [{"outputs": []}, {"outputs": []}]
        with self.assertRaisesRegex(UsageError, r"the record has no requests\[-1\]"):
            read_vllm_record(record, request=-1)
        entry = {"forward_pass_id": 0, "forward_mode": 1, "input_ids": [1], "positions": [0],
                 "topk_ids_of_layer": [[[0]]]}  # fmt: skip
        with self.assertRaisesRegex(UsageError, "there is no number -1"):
            read_sglang_tokens({"records": [entry]}, request=-1)


class Prompts(unittest.TestCase):
    def test_that_are_no_unicode_end_with_2_before_a_model_is_loaded(self) -> None:
        # The model is not there: loading it would end with 5.
        for more, told in (
            (["--model", "none", "--prompt", "a\udcff"], "prompt: character 1 is no Unicode text"),
            (["--model", "a\udcff", "--prompt", "a"], "model_id: character 1 is no Unicode text"),
        ):
            out = io.StringIO()
            with self.subTest(told), contextlib.redirect_stderr(out):
                code = main(["capture", "--out", str(temporary_folder(self)), *more])
            self.assertEqual(code, 2, out.getvalue())
            self.assertIn(told, out.getvalue())


if __name__ == "__main__":
    unittest.main()
