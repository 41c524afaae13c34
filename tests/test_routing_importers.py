"""Records of other engines: what they say becomes a bundle, what they do not say stays unsaid."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.cli import main
from moe_weights.errors import CheckpointError, InvalidDataError, UsageError
from moe_weights.routing import load_run_bundle
from moe_weights.routing.importers.record_files import read_record
from moe_weights.routing.importers.recorded import RoutedModel, map_layers, to_choices, to_ids
from moe_weights.routing.importers.sglang import (
    is_per_token,
    read_sglang_counts,
    read_sglang_tokens,
)
from moe_weights.routing.importers.vllm import read_vllm_record

# Five tokens, two MoE layers, two of four experts each.
CHOSEN = np.array(
    [[[0, 1], [2, 3]], [[1, 0], [3, 1]], [[2, 0], [0, 1]], [[3, 1], [1, 2]], [[0, 3], [2, 0]]]
)

NO_ARCHIVE = base64.b64encode(b"PK\x03\x04 no archive").decode()


def to_npy(values: Any) -> str:
    stream = io.BytesIO()
    np.save(stream, values)
    return base64.b64encode(stream.getvalue()).decode()


HUGE_NPY = base64.b64encode(
    base64.b64decode(to_npy(np.zeros((1, 2, 2), int))).replace(b"(1, 2, 2), }" + b" " * 15,
                                                                b"(1000000000000000, 2, 2), }")
).decode()  # fmt: skip


def make_pass(pass_id: int, positions: list[int], chosen: Any, **more: Any) -> dict[str, Any]:
    """Return a record of one forward pass; `chosen` is (tokens, layers, k)."""
    padded = np.full((np.shape(chosen)[1], len(positions), 4), -1)
    padded[:, :, : np.shape(chosen)[2]] = np.swapaxes(chosen, 0, 1)
    return {
        "forward_pass_id": pass_id,
        "rank": 0,
        "input_ids": [100 + position for position in positions],
        "positions": positions,
        "forward_mode": 1 if len(positions) > 1 else 2,
        "topk_ids_of_layer": padded.tolist(),
        **more,
    }


def make_dump(**more: Any) -> dict[str, Any]:
    return {
        "records": [
            make_pass(2, [3], CHOSEN[3:4]),
            make_pass(1, [0, 1, 2], CHOSEN[:3]),
            {"forward_pass_id": 3, "forward_mode": 4},
            make_pass(4, [4], CHOSEN[4:]),
        ],
        "last_physical_to_logical_map": None,
        **more,
    }


class ImportCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        if path.suffix == ".json":
            path.write_text(json.dumps(content))
        elif path.suffix == ".npz":
            np.savez(path, **content)
        else:
            np.save(path, content)
        return path

    def run_cli(self, engine: str, path: Path, *more: object) -> tuple[int, str]:
        out = io.StringIO()
        shape = () if "--config" in more else ("--experts", 4, "--layers", "1,3")
        line = ["import-routing", "--format", engine, "--input", path, "--out", self.folder / "run",
                "--model-id", "org/m", *shape, *more]  # fmt: skip
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([str(argument) for argument in line])
        return code, out.getvalue()

    def bundle(self, run_id: str) -> dict[str, Any]:
        return load_run_bundle(self.folder / "run" / "routing" / run_id)

    def check_events(self, bundle: dict[str, Any], chosen: Any = CHOSEN) -> None:
        self.assertEqual(
            [
                [layer["topk_indices"] for layer in event["layers"]]
                for event in bundle["raw_events"]
            ],
            chosen.tolist(),
        )
        for event in bundle["raw_events"]:
            self.assertEqual([layer["layer_index"] for layer in event["layers"]], [1, 3])
            for layer in event["layers"]:
                given = {name for name, value in layer.items() if value is not None}
                self.assertEqual(
                    given,
                    {"layer_index", "layer_kind", "num_total_experts", "num_active_experts",
                     "topk_indices", "not_captured"},
                )  # fmt: skip
                self.assertIn("combine_weights", layer["not_captured"])
                self.assertIn("selection_bias", layer["not_captured"])


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


class Files(ImportCase):
    def test_files_that_cannot_be_read(self) -> None:
        (self.folder / "a.txt").write_text("")
        with self.assertRaisesRegex(UsageError, r"a record is a \.json, \.npy, \.npz or \.pt"):
            read_record(self.folder / "a.txt")
        np.save(self.folder / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
        for name, content, told in (
            ("a.json", b"{", "is not JSON"),
            ("b.json", b"\xff", "is not JSON"),
            ("a.npy", b"", "is no NumPy file"),
            ("b.npz", b"PK\x03\x04 and no more", "BadZipFile"),
            ("pickle.npy", None, "is no NumPy file of plain numbers"),
            ("missing.json", None, "No such file"),
        ):
            if content is not None:
                (self.folder / name).write_bytes(content)
            with self.subTest(name), self.assertRaisesRegex(CheckpointError, told):
                read_record(self.folder / name)

    def test_a_torch_file_needs_torch_and_is_read_as_plain_tensors(self) -> None:
        path = self.folder / "a.pt"
        path.write_bytes(b"")
        with mock.patch("importlib.import_module", side_effect=ImportError("no torch")):
            code, told = self.run_cli("sglang", path)
        self.assertEqual(code, 2)
        self.assertIn("pip install 'moe-weights[capture]', or save the record as JSON", told)
        asked: dict[str, Any] = {}
        tensor = SimpleNamespace(detach=lambda: tensor, cpu=lambda: tensor, numpy=lambda: CHOSEN)

        def load(_path: str, **options: Any) -> Any:
            asked.update(options)
            return {"records": [(tensor, 1)]}

        torch = SimpleNamespace(load=load)
        with mock.patch.dict(sys.modules, {"torch": torch}):  # type: ignore[dict-item]
            self.assertEqual(read_record(path), {"records": [[CHOSEN, 1]]})
            self.assertTrue(asked["weights_only"])
            torch.load = mock.Mock(side_effect=ValueError("unsafe\nglobal"))
            with self.assertRaisesRegex(CheckpointError, "plain tensors: ValueError: unsafe"):
                read_record(path)
            torch.load = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
            with self.assertRaisesRegex(CheckpointError, "Permission denied"):
                read_record(path)
        np.save(self.folder / "a.npy", CHOSEN)
        with (
            mock.patch("numpy.load", side_effect=PermissionError(13, "Permission denied")),
            self.assertRaisesRegex(CheckpointError, "Permission denied"),
        ):
            read_record(self.folder / "a.npy")


class Layers(unittest.TestCase):
    def test_an_axis_that_counts_neither_is_refused_with_both_numbers(self) -> None:
        model = RoutedModel(model_id="m", n_experts=4, moe_layers=(1, 3), n_layers=5)
        self.assertEqual(map_layers(2, model), [(0, 1), (1, 3)])
        self.assertEqual(map_layers(5, model), [(1, 1), (3, 3)])
        with self.assertRaisesRegex(UsageError, "not the 2 layers with experts and not all 5"):
            map_layers(4, model)

    def test_ranges_of_layers(self) -> None:
        for text, good in (("1-3,5", True), ("3-1", False), ("0-999999999", False), ("x", False)):
            line = ["import-routing", "--format", "vllm", "--input", "no.json", "--out", "o",
                    "--model-id", "m", "--experts", "4", "--layers", text]  # fmt: skip
            with contextlib.redirect_stderr(io.StringIO()) as told:
                if good:
                    self.assertEqual(main(line), 5)
                else:
                    with self.assertRaises(SystemExit):
                        main(line)
                    self.assertIn("--layers", told.getvalue())
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
            main([*line, "--experts", "0"])
        many = [*line[:-3], "1000001", "--layers", "1-3"]
        with contextlib.redirect_stderr(io.StringIO()) as told:
            self.assertEqual(main(many), 2)
        self.assertIn("--experts is 1000001; give a number from 1 to 1000000", told.getvalue())


if __name__ == "__main__":
    unittest.main()
