"""Loading a model folder with a stand-in for transformers."""

from __future__ import annotations

import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from moe_weights.errors import BackendUnavailableError, CheckpointError
from moe_weights.live_models import (
    byte_tokens,
    import_framework,
    load_network,
    load_tokenizer,
    use_plain_experts,
)
from tests.support.runs import temporary_folder


class OtherError(CheckpointError):
    pass


def library(*results: Any) -> Any:
    """Return a library whose model classes give these results, raising those that are errors."""
    remaining = list(results)

    def from_pretrained(_path: str, **options: Any) -> Any:
        assert options["local_files_only"]
        assert not options["trust_remote_code"]
        result = remaining.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    auto = SimpleNamespace(from_pretrained=from_pretrained)
    logging = SimpleNamespace(disable_progress_bar=lambda: None)
    return SimpleNamespace(
        AutoModelForCausalLM=auto,
        AutoModelForImageTextToText=auto,
        utils=SimpleNamespace(logging=logging),
    )


class Networks(unittest.TestCase):
    def test_are_of_the_first_class_that_takes_them(self) -> None:
        found = load_network(library(ValueError("no"), ("network", {})), Path("m"))
        self.assertEqual(found, ("network", {}))

    def test_that_no_class_takes_are_refused_with_the_first_reason(self) -> None:
        with self.assertRaises(OtherError) as caught:
            load_network(library(ValueError("one\ntwo"), KeyError("b")), Path("m"), OtherError)
        self.assertEqual(
            str(caught.exception),
            "m: transformers cannot load it: AutoModelForCausalLM: ValueError: one",
        )

    def test_with_weights_that_would_be_random_are_refused(self) -> None:
        for key, told in (("missing_keys", "missing"), ("mismatched_keys", "mismatched")):
            with self.assertRaises(CheckpointError) as caught:
                load_network(library(("network", {key: ["b", "a"]})), Path("m"))
            self.assertEqual(
                str(caught.exception),
                f"m: 2 weights are {told}, for example a; the model would run with random ones",
            )

    def test_on_a_cpu_run_plain_experts(self) -> None:
        chosen: list[str] = []
        network = SimpleNamespace(set_experts_implementation=chosen.append)
        for device in ("cuda", "cpu"):
            use_plain_experts(network, device)
        use_plain_experts(object(), "cpu")
        self.assertEqual(chosen, ["eager"])


class Tokenizers(unittest.TestCase):
    def test_that_are_not_there_need_no_library(self) -> None:
        self.assertIsNone(load_tokenizer(temporary_folder(self), "testing"))

    def test_that_cannot_be_read_are_refused_with_advice(self) -> None:
        folder = temporary_folder(self)
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        failing = mock.Mock()
        failing.AutoTokenizer.from_pretrained.side_effect = KeyError("x")
        with (
            mock.patch("importlib.import_module", return_value=failing),
            self.assertRaises(OtherError) as caught,
        ):
            load_tokenizer(folder, "testing", OtherError, "give ids")
        self.assertEqual(
            str(caught.exception),
            f"{folder}: its tokenizer cannot be loaded: KeyError: 'x'; give ids",
        )

    def test_run_no_code_of_the_folder_and_ask_nobody(self) -> None:
        folder = temporary_folder(self)
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        library = mock.Mock()
        with mock.patch("importlib.import_module", return_value=library):
            load_tokenizer(folder, "testing")
        library.AutoTokenizer.from_pretrained.assert_called_once_with(
            str(folder), local_files_only=True, trust_remote_code=False
        )

    def test_without_any_ids_are_bytes(self) -> None:
        self.assertEqual(byte_tokens("aé", 100), (97, 95, 69))


class Frameworks(unittest.TestCase):
    def test_that_are_missing_are_told_with_their_package(self) -> None:
        with mock.patch("importlib.import_module", side_effect=ImportError("none")):
            for name, package in (("torch", "'moe-weights[capture]'"), ("mlx.core", "mlx-lm")):
                with self.assertRaises(BackendUnavailableError) as caught:
                    import_framework(name, "testing")
                self.assertEqual(
                    str(caught.exception),
                    f"testing needs {name}, which cannot be imported (none); install it with: "
                    f"pip install {package}",
                )


if __name__ == "__main__":
    unittest.main()
