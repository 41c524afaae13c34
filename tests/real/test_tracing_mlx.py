"""Traces of mlx-lm models, held against PyTorch on the same weights."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from architectures import Architecture
from building import build_model
from mlx_lm.utils import load_model, quantize_model, save

from moe_weights.cli import main
from moe_weights.tracing import Intervention, TraceRequest, open_engine, trace_model

PROMPT = "the quick brown fox"
# Widths that groups of 32 columns divide.
SIZES = (64, 32, 96, 5)


def run_cli(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue()


class SameWeights(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def build(self, model_type: str) -> Path:
        model = build_model(
            Architecture(name="mlx", model_type=model_type, fixed_sizes=SIZES)
        ).float()
        path = self.folder / model_type
        model.save_pretrained(path, save_original_format=True)
        document = path / "config.json"
        config = json.loads(document.read_text("utf-8"))
        # Names of transformers 4, which mlx-lm still reads.
        older = {"num_experts": SIZES[3], "head_dim": 16, "rope_theta": 10000.0}
        document.write_text(json.dumps({**older, **config}), encoding="utf-8")
        return path

    def quantize(self, path: Path, bits: int) -> Path:
        network, config = load_model(path)
        network, config = quantize_model(network, config, group_size=32, bits=bits)
        target = path.with_name(f"{path.name}-q{bits}")
        save(target, path, network, _NoTokenizer(), config)
        return target

    def compare(self, baseline: Path, target: Path, *more: object) -> tuple[int, dict[str, Any]]:
        result = self.folder / "result.json"
        code, told = run_cli(
            "trace", "--baseline", baseline, "--target", target, "--prompt", PROMPT,
            "--json", result, *more,
        )  # fmt: skip
        self.assertTrue(result.exists(), told)
        return code, json.loads(result.read_text("utf-8"))

    def test_show_the_same_artifacts_shapes_and_almost_the_same_values(self) -> None:
        for model_type in ("mixtral", "qwen3_moe", "olmoe"):
            with self.subTest(model_type):
                path = self.build(model_type)
                change = Intervention(name="halve", layer=1, scale=0.5)
                request = TraceRequest(
                    trace_id="t",
                    prompt_ids=tuple(range(3, 12)),
                    collect_layers=(0, 1, 3),
                    return_logprobs=True,
                    decode_steps=2,
                    interventions=(change,),
                    requested_artifacts=("weight_snapshot",),
                )
                results = [
                    trace_model(open_engine(str(path), backend=backend), request)
                    for backend in ("torch", "mlx")
                ]
                left, right = results
                self.assertEqual(left.generated_ids, right.generated_ids)
                described = [
                    [(item.artifact_id, item.kind, item.shape) for item in result.trace.artifacts]
                    for result in results
                ]
                self.assertEqual(*described)
                self.assertEqual(*([s.name for s in r.trace.spans] for r in results))
                for name, array in left.arrays.items():
                    np.testing.assert_allclose(right.arrays[name], array, rtol=1e-3, atol=1e-3)
                weights = [
                    r.trace.artifacts_by_kind("weight_snapshot")[0].metadata for r in results
                ]
                self.assertEqual(*weights)
                code, _result = self.compare(path, path, "--backend", "mlx")
                self.assertEqual(code, 0)

    def test_quantised_diverge_from_the_first_layer_on_less_with_more_bits(self) -> None:
        path = self.build("olmoe")
        worst = []
        for bits in (4, 8):
            code, result = self.compare(path, self.quantize(path, bits), "--decode-steps", 2)
            self.assertEqual(code, 1)
            self.assertEqual((result["errors"], result["missing"]), ([], []))
            first = result["first_divergence"]
            self.assertEqual((first["hook_point"], first["layer"]), ("prefill", 0))
            self.assertIn(f"target: mlx, mlx-affine-{bits}bit", result["notes"])
            worst.append(max(entry["max_rel_diff"] for entry in result["comparisons"]))
        self.assertLess(worst[1], worst[0])

    def test_run_on_the_default_device(self) -> None:
        engine = open_engine(str(self.build("mixtral")), backend="mlx")
        self.assertEqual(engine.model.device.label, str(mx.default_device()))
        self.assertEqual(engine.model.n_layers, 4)


class _NoTokenizer:
    def save_pretrained(self, _path: object) -> None:
        """Save nothing: these models have none."""


if __name__ == "__main__":
    unittest.main()
