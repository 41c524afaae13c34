"""`moe-weights capture`, with stand-ins of torch and transformers."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from moe_weights.cli import main
from moe_weights.errors import BackendUnavailableError, CheckpointError, UsageError
from moe_weights.routing import WorkingBundle, load_run_bundle, resume_working_bundle
from moe_weights.routing.capture_command import CaptureOptions, capture_generation
from moe_weights.routing.capture_model import CaptureModel, load_capture_model
from tests.support.fake_routers import (
    VOCABULARY,
    FakeModel,
    FakeModule,
    fake_libraries,
    make_biased_block,
    make_softmax_block,
)


class Tokenizer:
    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - 97 for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return chr(97 + ids[0])


def auto(*results: Any) -> Any:
    """Return an Auto class whose calls give these results, raising those that are errors."""
    remaining = list(results)

    def from_pretrained(_path: str, **_options: Any) -> Any:
        result = remaining.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return SimpleNamespace(from_pretrained=from_pretrained)


def make_model(eos: Any = None) -> FakeModel:
    model = FakeModel(FakeModule(), make_softmax_block(), make_biased_block())
    model.generation_config = SimpleNamespace(eos_token_id=eos)  # type: ignore[attr-defined]
    return model


def run_cli(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue()


class CommandCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.model = self.folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")

    def libraries(self, network: Any, **more: Any) -> Any:
        found = {
            "AutoModelForCausalLM": auto((network, {})),
            "AutoModelForImageTextToText": auto(ValueError("not that either")),
            "AutoTokenizer": auto(Tokenizer()),
        }
        return fake_libraries(**(found | more))

    def capture(self, *more: object) -> tuple[int, str]:
        return run_cli(
            "capture", "--model", self.model, "--prompt", "abc", "--max-new-tokens", 4,
            "--out", self.folder / "run", *more,
        )  # fmt: skip


class TheCommand(CommandCase):
    def test_writes_a_bundle_in_the_run_with_each_generated_token_fed_back(self) -> None:
        (self.model / "tokenizer.json").write_text("{}")
        network = make_model(eos=[30, 31])
        with self.libraries(network):
            code, told = self.capture("--seed", 7)
        self.assertEqual(code, 0, told)
        run_dir = self.folder / "run" / "routing" / "capture"
        self.assertEqual(told, f"wrote {run_dir}: 3 prompt tokens, 4 generated tokens\n")
        bundle = load_run_bundle(run_dir)
        self.assertEqual("".join(e["token_text"] for e in bundle["raw_events"]), "abcdefg")
        manifest = bundle["manifest"]
        self.assertEqual(manifest["model_id"], "model")
        self.assertEqual(manifest["tokenizer_id"], "model")
        self.assertEqual(manifest["seed"], 7)
        layers = [entry["layer_index"] for entry in manifest["capture_config"]["moe_layers"]]
        self.assertEqual(layers, [1, 2])
        self.assertEqual(network.generation_config.eos_token_id, [30, 31])
        self.assertEqual(network.experts_implementation, "eager")

    def test_stops_after_an_end_token_that_was_fed_back(self) -> None:
        network = make_model(eos=35)
        with self.libraries(network):
            code, told = self.capture("--temperature", 0.5)
        self.assertEqual(network.generation_config.eos_token_id, 35)
        self.assertEqual(code, 0, told)
        events = load_run_bundle(self.folder / "run" / "routing" / "capture")["raw_events"]
        # Without a tokenizer the ids are bytes; abc is 97, 98, 99, modulo 40.
        self.assertEqual([event["token_id"] for event in events], [17, 18, 19, 20, 21, 22, 23])
        with self.libraries(make_model(eos=21)):
            code, told = self.capture("--run-id", "two", "--quiet")
        self.assertEqual((code, told), (0, ""))
        bundle = load_run_bundle(self.folder / "run" / "routing" / "two")
        events = bundle["raw_events"]
        self.assertEqual([event["token_id"] for event in events], [17, 18, 19, 20, 21])
        self.assertEqual(events[0]["token_text"], None)
        self.assertIn("bytes", bundle["manifest"]["tokenizer_id"])

    def test_what_is_there_already_is_not_replaced(self) -> None:
        place = self.folder / "run" / "routing" / "capture"
        place.mkdir(parents=True)
        code, told = self.capture()
        self.assertEqual(code, 6)
        self.assertIn("a bundle is never replaced", told)

    def test_a_model_that_cannot_be_read_is_5_and_a_dense_one_2(self) -> None:
        with self.libraries(
            make_model(),
            AutoModelForCausalLM=auto(OSError("no weights\nat all")),
        ):
            code, told = self.capture()
        self.assertEqual(code, 5)
        self.assertIn(
            "transformers cannot load it: AutoModelForCausalLM: OSError: no weights", told
        )
        dense = FakeModel(FakeModule())
        with self.libraries(dense):
            code, told = self.capture()
        self.assertEqual(code, 2)
        self.assertIn("is not a Mixture-of-Experts model", told)
        (self.model / "config.json").unlink()
        with self.libraries(make_model()):
            code, told = self.capture()
        self.assertEqual(code, 5)
        self.assertIn("has no config.json", told)
        self.assertFalse((self.folder / "run").exists())

    def test_without_the_extra_it_says_how_to_get_it(self) -> None:
        def no_torch(name: str) -> Any:
            raise ImportError(f"No module named {name!r}")

        with mock.patch("importlib.import_module", no_torch):
            code, told = self.capture()
        self.assertEqual(code, 2)
        self.assertIn("install it with: pip install 'moe-weights[capture]'", told)

    def test_arguments_are_checked(self) -> None:
        for bad in (
            ("--max-new-tokens", "-1"),
            ("--max-new-tokens", "many"),
            ("--temperature", "-1"),
            ("--temperature", "warm"),
            ("--temperature", "nan"),
            ("--seed", "x"),
            ("--seed", str(2**63)),
            ("--unfinished", "keep"),
            ("--out", "-"),
        ):
            with self.assertRaises(SystemExit) as caught, contextlib.redirect_stderr(io.StringIO()):
                self.capture(*bad)
            self.assertEqual(caught.exception.code, 2)


class FailedCaptures(CommandCase):
    """What is left of a capture that did not come to its end, and what can be done with it."""

    def setUp(self) -> None:
        super().setUp()
        self.routing = self.folder / "run" / "routing"
        self.working = self.routing / ".run-bundle.working-capture"

    def capture_failing(self, at: int, error: BaseException, *more: object) -> tuple[int, str]:
        """Capture with a model that fails when it is fed the token of a position."""
        network = make_model()
        feed = network.feed

        def fail(ids: list[int], n_before: int = 0, **keywords: Any) -> None:
            if n_before == at:
                raise error
            feed(ids, n_before, **keywords)

        network.feed = fail  # type: ignore[method-assign]
        with self.libraries(network):
            return self.capture(*more)

    def test_an_interrupted_one_keeps_its_tokens(self) -> None:
        code, told = self.capture_failing(4, KeyboardInterrupt())
        self.assertEqual(code, 130)
        self.assertNotIn("collect-data", told)
        lines = (self.working / "raw_trace.ndjson").read_text().splitlines()
        self.assertEqual([json.loads(line)["token_index"] for line in lines], [0, 1, 2, 3])

    def test_a_model_that_fails_is_no_traceback_and_its_tokens_are_kept(self) -> None:
        with self.assertLogs("moe_weights.routing.capture_command", "WARNING") as logs:
            code, told = self.capture_failing(5, RuntimeError("out of memory\nmore"))
        kept = f"{self.working} keeps the 5 tokens that were captured; see --unfinished"
        self.assertEqual(code, 5)
        self.assertEqual(
            told,
            f"error: CheckpointError: {self.model}: failed while generating: RuntimeError: out of "
            f"memory; {kept}\n",
        )
        self.assertEqual(logs.records[0].getMessage(), kept)

    def test_one_that_fails_before_its_first_token_leaves_nothing(self) -> None:
        code, told = self.capture_failing(0, RuntimeError("no"))
        self.assertEqual(code, 5)
        self.assertIn("failed while generating: RuntimeError: no; nothing was captured", told)
        self.assertFalse((self.folder / "run").exists())

    def test_the_next_one_says_what_lies_there_before_it_loads_the_model(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        created = json.loads((self.working / "manifest.json").read_text())["created_at"]
        code, told = self.capture()  # without torch: nothing may be loaded
        self.assertEqual(code, 2)
        self.assertEqual(
            told,
            f"error: UsageError: {self.working} holds 5 tokens of a capture that was not finished "
            f"(model, started {created}); run the same command with --unfinished salvage to keep "
            f"them as the bundle {self.routing / 'capture'}, with --unfinished discard to remove "
            "them and capture anew, or use another --run-id\n",
        )

    def test_its_tokens_can_be_kept_as_a_bundle_that_says_so(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        with (self.working / "raw_trace.ndjson").open("ab") as trace:
            trace.write(b'{"event_ty')
        with self.assertLogs("moe_weights.routing.working_bundle", "WARNING"):
            code, told = self.capture("--unfinished", "salvage")
        run_dir = self.routing / "capture"
        self.assertEqual(
            (code, told), (0, f"wrote {run_dir}: 5 tokens of a capture that was not finished\n")
        )
        bundle = load_run_bundle(run_dir)
        self.assertEqual(len(bundle["raw_events"]), 5)
        self.assertEqual(bundle["manifest"]["capture_config"]["unfinished"], {"dropped_bytes": 10})
        self.assertEqual([path.name for path in self.routing.iterdir()], ["capture"])
        self.assertEqual(self.capture("--unfinished", "salvage")[0], 6)

    def test_a_salvage_that_was_killed_still_knows_how_much_it_cut_off(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        with (self.working / "raw_trace.ndjson").open("ab") as trace:
            trace.write(b'{"event_ty')
        for name in ("_read_back", "promote"):
            with mock.patch.object(WorkingBundle, name, side_effect=KeyboardInterrupt):
                self.assertEqual(self.capture("--unfinished", "salvage")[0], 130)
        self.assertEqual(self.capture("--unfinished", "salvage")[0], 0)
        kept = load_run_bundle(self.routing / "capture")["manifest"]
        self.assertEqual(kept["capture_config"]["unfinished"], {"dropped_bytes": 10})

    def test_its_tokens_can_be_kept_whatever_wrote_its_manifest(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        manifest = json.loads((self.working / "manifest.json").read_text())
        del manifest["capture_config"]  # which a manifest need not have
        (self.working / "manifest.json").write_text(json.dumps(manifest))
        self.assertEqual(self.capture("--unfinished", "salvage")[0], 0)
        kept = load_run_bundle(self.routing / "capture")["manifest"]
        self.assertEqual(kept["capture_config"], {"unfinished": {"dropped_bytes": 0}})

    def test_its_tokens_can_be_removed(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        (self.working / "raw_trace.ndjson").write_text("no trace at all")
        (self.working / ".layout.json.tmp-1-2").write_text("{")
        with self.libraries(make_model()):
            code, told = self.capture("--unfinished", "discard")
        run_dir = self.routing / "capture"
        self.assertEqual(code, 0, told)
        self.assertEqual(
            told,
            "removed a capture that was not finished: capture\n"
            f"wrote {run_dir}: 3 prompt tokens, 4 generated tokens\n",
        )
        self.assertEqual(len(load_run_bundle(run_dir)["raw_events"]), 7)
        self.assertNotIn("unfinished", load_run_bundle(run_dir)["manifest"]["capture_config"])

    def test_its_tokens_are_not_removed_for_a_capture_that_cannot_begin(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        code, told = self.capture("--unfinished", "discard", "--prompt", "\udcff")
        self.assertEqual(code, 2)
        self.assertIn("prompt: character 0 is no Unicode text", told)
        self.assertIn("holds 5 tokens", self.capture()[1])

    def test_nothing_is_taken_from_a_capture_that_still_runs(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        with resume_working_bundle(self.routing, "capture", durable=False):
            for more in ((), ("--unfinished", "salvage"), ("--unfinished", "discard")):
                code, told = self.capture(*more)
                self.assertEqual(code, 2)
                self.assertIn("is written by another process; wait for it", told)
        self.assertEqual(self.capture("--unfinished", "salvage")[0], 0)

    def test_without_a_token_or_without_a_capture_there_is_nothing_to_keep(self) -> None:
        code, told = self.capture("--unfinished", "salvage")
        self.assertEqual(code, 2)
        self.assertIn("no capture to salvage; drop --unfinished", told)
        self.capture_failing(5, KeyboardInterrupt())
        (self.working / "raw_trace.ndjson").unlink()
        code, told = self.capture()
        self.assertIn("holds 0 tokens", told)
        code, told = self.capture("--unfinished", "salvage")
        self.assertEqual(code, 2)
        self.assertIn("holds no whole token; remove it with --unfinished discard", told)
        (self.working / "notes.txt").write_text("mine")
        code, told = self.capture("--unfinished", "discard")
        self.assertEqual(code, 6)
        self.assertIn("notes.txt is no part of a bundle; move it away", told)
        self.assertTrue((self.working / "manifest.json").exists())

    def test_a_manifest_that_is_damaged_is_no_hindrance(self) -> None:
        self.capture_failing(5, KeyboardInterrupt())
        (self.working / "manifest.json").write_text("{")
        code, told = self.capture()
        self.assertEqual(code, 2)
        self.assertIn("holds 5 tokens of a capture that was not finished; run the same", told)
        self.assertEqual(self.capture("--unfinished", "salvage")[0], 1)
        (self.working / "raw_trace.ndjson").unlink()
        (self.working / "raw_trace.ndjson").mkdir()
        code, told = self.capture()
        self.assertEqual(code, 2)
        self.assertIn("cannot be read: Is a directory", told)


class Loading(CommandCase):
    def test_the_second_model_class_is_tried(self) -> None:
        network = make_model()
        with self.libraries(
            network,
            AutoModelForCausalLM=auto(ValueError("unrecognised")),
            AutoModelForImageTextToText=auto((network, {})),
        ):
            self.assertIs(load_capture_model(self.model).network, network)

    def test_a_name_that_no_file_system_takes(self) -> None:
        with (
            self.libraries(make_model()),
            self.assertRaisesRegex(CheckpointError, "File name too long"),
        ):
            load_capture_model(Path("x" * 300))

    def test_missing_weights_are_refused(self) -> None:
        loading = {"missing_keys": {"b", "a"}}
        with (
            self.libraries(make_model(), AutoModelForCausalLM=auto((make_model(), loading))),
            self.assertRaisesRegex(CheckpointError, "2 weights are missing, for example a;"),
        ):
            load_capture_model(self.model)

    def test_a_device_that_is_not_there(self) -> None:
        with (
            self.libraries(make_model()),
            self.assertRaisesRegex(BackendUnavailableError, "device 'none' cannot be used"),
        ):
            load_capture_model(self.model, device="none")
        for device in ("cuda", "cuda:1", "mps"):
            with self.libraries(make_model()):
                self.assertIsNotNone(load_capture_model(self.model, device=device).synchronize)

    def test_a_tokenizer_that_cannot_be_loaded(self) -> None:
        (self.model / "tokenizer.json").write_text("{}")
        with (
            self.libraries(make_model(), AutoTokenizer=auto(KeyError("model"))),
            self.assertRaisesRegex(CheckpointError, "its tokenizer cannot be loaded: KeyError"),
        ):
            load_capture_model(self.model)

    def test_options_that_make_no_sense(self) -> None:
        model = CaptureModel(network=make_model(), tokenizer=None, versions={})
        for changes, told in (
            ({"max_new_tokens": -1}, "must not be negative"),
            ({"prompt": ""}, "the prompt has no tokens"),
        ):
            fields: dict[str, Any] = {"prompt": "a", "max_new_tokens": 1} | changes
            options = CaptureOptions(model="m", out="", **fields)
            with self.assertRaisesRegex(UsageError, told):
                capture_generation(model, self.folder, options)
        self.assertLess(max(model.tokenize("~")), VOCABULARY)

    def test_nothing_of_torch_is_imported_with_the_commands(self) -> None:
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
