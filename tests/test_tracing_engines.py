from __future__ import annotations

import importlib.util
import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.errors import BackendUnavailableError, UsageError
from moe_weights.tracing import Intervention, TraceModelError, TraceRequest, trace_model
from moe_weights.tracing.engine import ModelEngine
from moe_weights.tracing.engines import open_engine
from moe_weights.tracing.mlx_engine import load_mlx_engine
from moe_weights.tracing.model_config import backend_of
from moe_weights.tracing.torch_engine import load_torch_engine
from tests.support.fake_torch import (
    FakeNetwork,
    fake_frameworks,
    replaced_modules,
    write_fake_model,
)
from tests.support.odd_files import make_pipe, no_waiting
from tests.support.runs import temporary_folder

HAS_MLX = importlib.util.find_spec("mlx") is not None
REQUEST: dict[str, Any] = {
    "trace_id": "t",
    "prompt_ids": (1, 2),
    "collect_layers": (0, 1),
    "decode_steps": 1,
    "requested_artifacts": ("weight_snapshot",),
    "measure_memory": True,
}


class TorchEngines(unittest.TestCase):
    def load(self, device: str = "cpu", **options: Any) -> ModelEngine:
        folder = temporary_folder(self)
        config = options.pop("config", {})
        with_tokenizer = options.pop("with_tokenizer", False)
        path = write_fake_model(folder / "m", with_tokenizer=with_tokenizer, **config)
        patch = replaced_modules(fake_frameworks(**options))
        self.enterContext(patch)
        return load_torch_engine(path, device=device)

    def test_see_what_each_layer_gives(self) -> None:
        network = FakeNetwork()
        result = trace_model(self.load(network=network), TraceRequest(**REQUEST))
        np.testing.assert_allclose(result.arrays["activation.layer_0"][:, 0], [1.1, 1.2], rtol=1e-6)
        np.testing.assert_allclose(result.arrays["activation.layer_1"][:, 0], [3.1, 3.2], rtol=1e-6)
        self.assertEqual(result.trace.metadata["dtype"], "bfloat16")
        self.assertEqual(network.experts, "eager")
        self.assertEqual([layer.after for layer in network.layers], [[], [], []])
        (weights, _second) = result.trace.artifacts_by_kind("weight_snapshot")
        self.assertEqual(weights.metadata["n_bytes"], 256)

    def test_change_layers_of_both_forms(self) -> None:
        for layer in (0, 1):
            change = Intervention(name="a", layer=layer, scale=0, shift=7)
            request = TraceRequest(**{**REQUEST, "interventions": (change,)})
            result = trace_model(self.load(), request)
            self.assertTrue((result.arrays[f"activation.layer_{layer}"] == 7).all())
        only = TraceRequest(
            trace_id="t", prompt_ids=(1,), interventions=(Intervention(name="a", layer=2),)
        )
        self.assertEqual(len(trace_model(self.load(), only).arrays), 1)

    def test_without_a_head_count_all_time_as_forward(self) -> None:
        engine = self.load(network=FakeNetwork(has_head=False))
        self.assertEqual(engine.run_pass([1], None, layers=()).lm_head_s, 0)

    def test_wait_for_accelerators(self) -> None:
        for device in ("cuda", "mps"):
            engine = self.load(device, devices=(device,))
            trace = trace_model(engine, TraceRequest(**REQUEST)).trace
            forward = trace.spans[2].profile
            assert forward is not None
            self.assertEqual(forward.sync_points, 1)
            self.assertEqual(forward.memory_bytes, 1234 if device == "cuda" else None)
        with self.assertRaisesRegex(BackendUnavailableError, "device 'cuda' is not there"):
            self.load("cuda")

    def test_read_prompts_with_their_own_tokeniser(self) -> None:
        engine = self.load(with_tokenizer=True)
        self.assertTrue(engine.has_tokenizer)
        self.assertEqual(engine.tokenize("a", apply_chat_template=False), (47,))
        self.assertEqual(engine.tokenize("a", apply_chat_template=True), (10, 47, 12))
        plain = self.load()
        self.assertEqual(plain.tokenize("a", apply_chat_template=False), (47,))
        with self.assertRaises(UsageError):
            plain.tokenize("a", apply_chat_template=True)

    def test_refuse_what_would_not_run_as_saved(self) -> None:
        for told, options in {
            "transformers cannot load it: AutoModelForCausalLM: KeyError: 'x'": {
                "failure": KeyError("x")
            },
            "1 weights are missing, for example w": {"loading": {"missing_keys": ["w"]}},
            "1 weights are mismatched": {"loading": {"mismatched_keys": [("w", 1, 2)]}},
            "no list of 4 decoder layers": {"config": {"num_hidden_layers": 4}},
            "it does not say num_hidden_layers": {"config": {"vocab_size": None}},
        }.items():
            with self.assertRaises(TraceModelError) as caught:
                self.load(**options)
            self.assertIn(told, str(caught.exception))
        with (
            replaced_modules(fake_frameworks(failure=OSError("bad"))),
            self.assertRaisesRegex(TraceModelError, "its tokenizer cannot be loaded"),
        ):
            from moe_weights.tracing.prompt_tokens import load_tokenizer

            load_tokenizer(write_fake_model(temporary_folder(self), with_tokenizer=True))

    def test_tell_what_was_left_over(self) -> None:
        engine = self.load(loading={"unexpected_keys": ["a", "b"]})
        self.assertEqual(
            engine.model.notes, ("2 tensors of the checkpoint are not part of the model",)
        )

    def test_do_not_wait_for_a_config_that_is_a_pipe(self) -> None:
        folder = temporary_folder(self)
        make_pipe(folder / "config.json")
        with no_waiting(), self.assertRaises(TraceModelError) as caught:
            open_engine(str(folder))
        self.assertEqual(
            str(caught.exception),
            f"{folder / 'config.json'}: it is a named pipe and no regular file; give a model "
            "directory with a config.json",
        )

    def test_are_chosen_by_the_config(self) -> None:
        self.assertEqual(backend_of({"quantization": {"bits": 4, "group_size": 64}}), "mlx")
        self.assertEqual(backend_of({"quantization": {"bits": 4}}), "torch")
        self.assertEqual(backend_of({}), "torch")


@unittest.skipUnless(HAS_MLX, "mlx is not installed")
class MlxEngines(unittest.TestCase):
    def load(self, *, failure: Exception | None = None, **config: Any) -> ModelEngine:
        import mlx.core as mx
        from mlx import nn

        class Block(nn.Module):  # type: ignore[misc] # mlx gives it no type
            def __init__(self, *, in_tuple: bool) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 4)
                self.in_tuple = in_tuple

            def __call__(self, hidden: Any, cache: Any) -> Any:
                output = hidden + self.linear(hidden)
                cache.add(hidden[:, None])
                return (output, None) if self.in_tuple else output

        class Network(nn.Module):  # type: ignore[misc] # mlx gives it no type
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(20, 4)
                self.blocks = [Block(in_tuple=bool(n % 2)) for n in range(3)]
                self.odd = config.pop("odd", False)

            @property
            def layers(self) -> list[Any]:
                return [Block(in_tuple=False)] if self.odd else list(self.blocks)

            def __call__(self, ids: Any, cache: Any) -> Any:
                hidden = self.embed(ids)
                for layer, entry in zip(self.blocks, cache, strict=True):
                    self.kind = layer.in_tuple
                    output = layer(hidden, entry)
                    hidden = output[0] if isinstance(output, tuple) else output
                return self.embed.as_linear(hidden)

        class Cache:
            def __init__(self) -> None:
                self.seen: list[Any] = []

            def add(self, values: Any) -> None:
                self.seen.append(values)

            def keys_and_values(self) -> tuple[Any, Any]:
                joined = mx.concatenate(self.seen, axis=2)
                return joined, joined

        class OldCache(Cache):
            keys_and_values = property()  # type: ignore[assignment] # hasattr says no

            @property
            def state(self) -> Any:
                return self.seen

        def load_model(_path: Any, **_options: Any) -> Any:
            if failure is not None:
                raise failure
            mx.random.seed(0)
            return Network(), {}

        modules = {
            "mlx_lm": SimpleNamespace(),
            "mlx_lm.utils": SimpleNamespace(load_model=load_model),
            "mlx_lm.models": SimpleNamespace(),
            "mlx_lm.models.cache": SimpleNamespace(
                make_prompt_cache=lambda _network: [Cache(), OldCache(), Cache()]
            ),
        }
        patch = replaced_modules(modules)
        self.enterContext(patch)
        path = write_fake_model(temporary_folder(self), **{"vocab_size": 20, **config})
        return load_mlx_engine(path)

    def test_see_what_each_layer_gives(self) -> None:
        engine = self.load(dtype="float32")
        result = trace_model(engine, TraceRequest(**REQUEST))
        self.assertEqual(result.arrays["activation.layer_1"].shape, (2, 4))
        self.assertEqual(result.arrays["logits.step_0"].shape, (1, 20))
        (weights, _second) = result.trace.artifacts_by_kind("weight_snapshot")
        self.assertEqual((weights.metadata["n_parameters"], weights.metadata["n_bytes"]), (20, 80))
        self.assertEqual(engine.model.dtype, "float32")
        self.assertFalse(engine.has_tokenizer)
        self.assertEqual(engine.tokenize("a", apply_chat_template=False), (17,))
        done = engine.run_pass([1, 2], None, layers=(0,), with_kv_cache=True)
        self.assertEqual(sorted(done.kv_cache), [0, 2])

    def test_change_layers_of_both_forms(self) -> None:
        engine = self.load()
        for layer in (0, 1):
            change = Intervention(name="a", layer=layer, scale=0, shift=7)
            request = TraceRequest(**{**REQUEST, "interventions": (change,)})
            arrays = trace_model(engine, request).arrays
            self.assertTrue((arrays[f"activation.layer_{layer}"] == 7).all())

    def test_measure_the_memory_of_an_accelerator(self) -> None:
        engine = self.load()
        device = SimpleNamespace(is_accelerator=True)
        with mock.patch.object(engine, "_model", SimpleNamespace(device=device)):
            done = engine.run_pass([1], None, layers=(), measure_memory=True)
        self.assertIsInstance(done.memory_bytes, int)

    def test_tell_how_they_were_quantised(self) -> None:
        engine = self.load(quantization={"bits": 4, "group_size": 32})
        self.assertEqual(engine.model.dtype, "mlx-affine-4bit")

    def test_refuse_what_cannot_be_observed(self) -> None:
        for told, options in {
            "mlx-lm cannot load it: ValueError: x": {"failure": ValueError("x")},
            "it does not say vocab_size": {"vocab_size": None},
            "no list of its 1 layers": {"odd": True},
        }.items():
            with self.assertRaises(TraceModelError) as caught:
                self.load(**options)
            self.assertIn(told, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
