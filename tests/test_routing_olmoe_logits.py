"""Router logits of OLMoE as a program hands them over, one layer at a time."""

from __future__ import annotations

import unittest
from typing import Any

from moe_weights.errors import InvalidDataError
from moe_weights.routing import VectorError, build_olmoe_layer_inputs, record_olmoe_generated_token


class Tensor:
    """A stand-in for a tensor: a shape and nested lists."""

    def __init__(self, values: list[Any], *shape: int) -> None:
        self.values = values
        self.shape = shape

    def tolist(self) -> list[Any]:
        return self.values


class Recorder:
    """Counts how often it was asked to record."""

    def __init__(self) -> None:
        self.calls = 0

    def record_generated_token(self, **_arguments: Any) -> dict[str, Any]:
        self.calls += 1
        return {}


class OlmoeLogits(unittest.TestCase):
    def test_of_one_layer_are_refused_with_layer_and_shape(self) -> None:
        good = [1.0, 0.0]
        name = "router_logits_by_layer"
        row = "must be a 1D sequence of numbers, one per expert"
        for logits, active, kind, told in (
            ([], 1, InvalidDataError, f"{name}[3] must not be empty; give one number per expert"),
            (
                Tensor([], 0),
                1,
                InvalidDataError,
                f"{name}[3] of shape (0,) must not be empty; give one number per expert",
            ),
            (
                Tensor([[1.0, 2.0], [0.0, 1.0]], 2, 2),
                1,
                VectorError,
                f"{name}[3] of shape (2, 2) {row}; item 0 is list; take one token's row of a batch",
            ),
            (
                [1.0, float("nan")],
                1,
                InvalidDataError,
                f"{name}[3][1] is nan; all values must be finite",
            ),
            (
                Tensor([1.0], 1),
                2,
                InvalidDataError,
                (
                    f"{name}[3] of shape (1,) has 1 experts, num_active_experts is 2; no more "
                    "can be chosen than there are"
                ),
            ),
        ):
            recorder = Recorder()
            with self.subTest(told), self.assertRaises(kind) as caught:
                record_olmoe_generated_token(
                    recorder,
                    token_id=1,
                    token_text="a",
                    context_length=0,
                    decode_start_ms=0.0,
                    decode_end_ms=1.0,
                    router_logits_by_layer={1: good, 3: logits},
                    num_active_experts=active,
                )
            self.assertEqual(str(caught.exception), told)
            self.assertEqual(recorder.calls, 0)

    def test_that_are_good_are_handed_on_as_they_are(self) -> None:
        tensor = Tensor([1.0, 0.0], 2)
        (made,) = build_olmoe_layer_inputs(router_logits_by_layer={0: tensor}, num_active_experts=1)
        self.assertIs(made.router_logits, tensor)


if __name__ == "__main__":
    unittest.main()
