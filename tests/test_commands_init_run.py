from __future__ import annotations

import json
import os
import shlex
import unittest
from pathlib import Path
from unittest import mock

import jsonschema

from moe_weights.config.template import template_config
from moe_weights.run_directory import INIT_FOLDERS
from tests.support.command_line import Outcome, run_command, tree
from tests.support.runs import read_json, temporary_folder


class InitCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.root = self.folder / "runs"

    def init(self, *more: object, model_id: str = "org/model", run_name: str = "first") -> Outcome:
        return run_command(
            "init-run", "--root", self.root, "--model-id", model_id, "--run-name", run_name, *more
        )

    @property
    def path(self) -> Path:
        return self.root / "org" / "model" / "first"


class FreshRun(InitCase):
    def test_has_every_folder_manifest_template_and_schema(self) -> None:
        outcome = self.init()
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        made = set(tree(self.path))
        self.assertEqual(
            made,
            {
                *INIT_FOLDERS,
                "cache/run.lock",
                "manifest.json",
                "analysis_config.json",
                "analysis_config.schema.json",
            },
        )
        self.assertEqual(
            outcome.out,
            f"[init_run] wrote config template to {self.path}/analysis_config.json\n"
            f"[init_run] run directory: {self.path}\n"
            "[init_run] next: edit analysis_config.json if needed, then\n"
            f"[init_run]   python scripts/collect_data.py --run-dir {self.path} --plan\n",
        )

    def test_manifest_is_golden_text(self) -> None:
        with mock.patch(
            "moe_weights.commands.init_run.utc_now_text", return_value="2026-01-02T03:04:05Z"
        ):
            self.init()
        self.assertEqual(
            (self.path / "manifest.json").read_text(encoding="utf-8"),
            "{\n"
            '  "created_at": "2026-01-02T03:04:05Z",\n'
            '  "model_id": "org/model",\n'
            '  "run_name": "first",\n'
            '  "version": 2\n'
            "}\n",
        )

    def test_config_is_the_template_and_fits_the_schema_beside_it(self) -> None:
        self.init()
        config = read_json(self.path / "analysis_config.json")
        self.assertEqual(config, template_config(""))
        schema = self.path / str(config["$schema"])
        jsonschema.validate(config, json.loads(schema.read_text(encoding="utf-8")))

    def test_config_takes_the_absolute_model_path(self) -> None:
        model = self.folder / "model"
        model.mkdir()
        outcome = self.init("--model-path", os.path.relpath(model))
        self.assertEqual(outcome.code, 0)
        self.assertNotIn("does not exist", outcome.out)
        config = read_json(self.path / "analysis_config.json")
        self.assertTrue(Path(str(config["model_path"])).is_absolute())
        self.assertTrue(Path(str(config["model_path"])).samefile(model))

    def test_a_model_path_that_is_not_there_yet_is_taken_with_a_warning(self) -> None:
        outcome = self.init("--model-path", self.folder / "later", "--quiet")
        self.assertEqual(outcome.code, 0)
        self.assertEqual(
            outcome.out, f"[warn] model_path does not exist yet: {self.folder}/later\n"
        )

    def test_a_model_path_that_is_not_there_yet_has_no_architecture_to_speak_of(self) -> None:
        outcome = self.init("--model-path", self.folder / "later")
        self.assertEqual(
            outcome.out.splitlines()[:2],
            [
                f"[warn] model_path does not exist yet: {self.folder}/later",
                f"[init_run] wrote config template to {self.path}/analysis_config.json",
            ],
        )

    def test_a_model_path_that_cannot_be_reached_is_taken_with_a_warning(self) -> None:
        path = f"{self.folder}/{'a' * 300}"
        outcome = self.init("--model-path", path, "--quiet")
        self.assertEqual(outcome.code, 0)
        self.assertEqual(
            outcome.out, f"[warn] model_path cannot be reached: {path}: File name too long\n"
        )

    def test_tells_the_next_command_in_the_shells_words(self) -> None:
        outcome = self.init(model_id="it's mine")
        expected = shlex.join(["--run-dir", str(self.root / "it's mine" / "first"), "--plan"])
        self.assertTrue(outcome.out.endswith(f" {expected}\n"), outcome.out)

    def test_paths_are_user_expanded(self) -> None:
        with mock.patch.dict(os.environ, {"HOME": str(self.folder)}):
            run_command(
                "init-run", "--root", "~/r", "--model-id", "m", "--run-name", "n",
                "--model-path", "~/model",
            )  # fmt: skip
        config = read_json(self.folder / "r" / "m" / "n" / "analysis_config.json")
        self.assertEqual(config["model_path"], f"{self.folder}/model")

    def test_a_home_that_is_not_known_is_refused(self) -> None:
        for option in ("--root", "--model-path"):
            with self.subTest(option=option):
                outcome = self.init(option, "~nobody-of-this-name/x")
                self.assertEqual(outcome.code, 2)
                self.assertEqual(
                    outcome.err,
                    f"error: UsageError: {option} ~nobody-of-this-name/x: Could not determine home "
                    "directory.; write the path in full\n",
                )
        self.assertFalse(self.root.exists())

    def test_a_path_that_is_no_text_is_refused(self) -> None:
        outcome = self.init("--model-path", "a\udcff")
        self.assertEqual(outcome.code, 2)
        self.assertIn("is not UTF-8, so no JSON file can name it; rename the folder", outcome.err)

    def test_says_nothing_when_asked(self) -> None:
        outcome = self.init("--quiet")
        self.assertEqual((outcome.code, outcome.out, outcome.err), (0, "", ""))


class KnownArchitecture(InitCase):
    def init_of(self, config: object, *, model_path: str = "model") -> Outcome:
        folder = self.folder / "model"
        folder.mkdir(exist_ok=True)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "model.safetensors").touch()
        return self.init("--model-path", self.folder / model_path)

    def preset(self) -> object:
        parsing = read_json(self.path / "analysis_config.json")["parsing"]
        assert isinstance(parsing, dict)
        return parsing["preset"]

    def test_is_said_and_written_into_the_config(self) -> None:
        for model_path in ("model", "model/model.safetensors"):
            outcome = self.init_of({"model_type": "jetmoe"}, model_path=model_path)
            self.assertEqual((outcome.code, outcome.err), (0, ""))
            self.assertEqual(outcome.out.splitlines()[0], "[init_run] preset: jetmoe (jetmoe)")
            self.assertEqual(self.preset(), "jetmoe")
            (self.path / "analysis_config.json").unlink()

    def test_is_found_in_a_nested_config_too(self) -> None:
        self.init_of({"model_type": "of_nobody", "text_config": {"model_type": "mixtral"}})
        self.assertEqual(self.preset(), "mixtral")

    def test_with_a_preset_leaves_every_other_key_as_it_is(self) -> None:
        self.init_of({"model_type": "mixtral"})
        config = read_json(self.path / "analysis_config.json")
        template = template_config(f"{self.folder}/model")
        assert isinstance(template["parsing"], dict)
        self.assertEqual(
            config, {**template, "parsing": {**template["parsing"], "preset": "mixtral"}}
        )

    def test_that_is_unknown_leaves_the_choice_to_the_run(self) -> None:
        outcome = self.init_of({"model_type": "of_nobody"})
        self.assertEqual(
            outcome.out.splitlines()[0],
            "[init_run] no preset for model_type of_nobody; generic rules apply",
        )
        self.assertEqual(self.preset(), "auto")

    def test_that_nothing_tells_leaves_it_too(self) -> None:
        for config in (None, {}, []):
            outcome = self.init_of(config)
            self.assertEqual(
                outcome.out.splitlines()[0],
                "[init_run] no config.json says what architecture this is; generic rules apply",
            )
            self.assertEqual(self.preset(), "auto")
            (self.path / "analysis_config.json").unlink()

    def test_is_not_spoken_of_without_a_model_path(self) -> None:
        self.assertNotIn("preset", self.init().out)
        self.assertEqual(self.preset(), "auto")

    def test_does_not_touch_a_config_that_is_there(self) -> None:
        self.init()
        self.assertNotIn("preset", self.init_of({"model_type": "mixtral"}).out)
        self.assertEqual(self.preset(), "auto")


class ExistingRun(InitCase):
    def test_keeps_its_config_byte_for_byte(self) -> None:
        self.init("--model-path", "/somewhere")
        config = self.path / "analysis_config.json"
        config.write_bytes(b' {"mine": 1}\r\n')
        outcome = self.init("--model-path", "/elsewhere")
        self.assertEqual(outcome.code, 0)
        self.assertEqual(config.read_bytes(), b' {"mine": 1}\r\n')
        self.assertEqual(
            outcome.out.splitlines()[:2],
            [
                f"[init_run] config already exists at {config} (left unchanged)",
                (
                    "[init_run] --model-path was not written into it; edit model_path there, or "
                    "give --model-path to collect_data"
                ),
            ],
        )

    def test_says_nothing_of_a_model_path_that_stands_there_already(self) -> None:
        for _ in range(2):
            outcome = self.init("--model-path", self.folder)
        self.assertIn("(left unchanged)", outcome.out)
        self.assertNotIn("--model-path was not written", outcome.out)

    def test_keeps_when_it_was_created_and_says_when_it_was_made_again(self) -> None:
        clock = "moe_weights.commands.init_run.utc_now_text"
        for now in ("first time", "second time", "third time"):
            with mock.patch(clock, return_value=now):
                self.init()
        self.assertEqual(
            read_json(self.path / "manifest.json"),
            {
                "model_id": "org/model",
                "run_name": "first",
                "created_at": "first time",
                "reinitialised_at": "third time",
                "version": 2,
            },
        )

    def test_mends_a_broken_manifest_and_keeps_collected_data(self) -> None:
        self.init()
        (self.path / "data" / "x.csv").write_text("kept")
        for broken in (b"", b"[]", b"\xff", b'{"created_at": 3}', b"[" * 200_000):
            (self.path / "manifest.json").write_bytes(broken)
            self.assertEqual(self.init().code, 0)
            self.assertIsInstance(read_json(self.path / "manifest.json")["created_at"], str)
            (self.path / "manifest.json").write_bytes(broken)
        self.assertEqual((self.path / "data" / "x.csv").read_text(), "kept")


class Names(InitCase):
    def test_may_nest(self) -> None:
        self.assertEqual(self.init(model_id="a/b.c/d-1", run_name="e/f").code, 0)
        self.assertTrue((self.root / "a" / "b.c" / "d-1" / "e" / "f" / "manifest.json").is_file())

    def test_never_leave_the_root(self) -> None:
        bad = ("", ".", "./", "..", "../x", "a/../../x", "a/..", "/x", "//x", "C:x", "c:/x",
               "C:\\x", "a\\b", "\\\\host\\x", "a\0b", "a\nb", "a\x1b[31m", "\x7f")  # fmt: skip
        for name in bad:
            for option in ("model_id", "run_name"):
                with self.subTest(name=name, option=option):
                    outcome = self.init(**{option: name})
                    self.assertEqual(outcome.code, 2)
                    self.assertEqual(
                        outcome.err,
                        f"error: UsageError: --{option.replace('_', '-')} {name!r} is not a "
                        "relative path below --root; use names joined by /, without .., drive "
                        "letters, backslashes or control characters\n",
                    )
        self.assertFalse(self.root.exists())


if __name__ == "__main__":
    unittest.main()
