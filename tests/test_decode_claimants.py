from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any

from moe_weights.checkpoint.name_ids import templates_of, without_ids
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.claimants import Claimants
from moe_weights.decode.members import MEMBERS
from moe_weights.decode.stored_tensor import EncodingContext
from tests.support.extraction import make_header

CODES = "layers.1.experts.2.w1.weight"


class Member:
    """Claims nothing, after asking what it is told to ask."""

    name = "member"

    def __init__(self, ask: Any) -> None:
        self.ask = ask

    def claim(self, header: TensorHeader, context: EncodingContext) -> None:
        self.ask(header, context)

    def decode(self, tensor: Any, parts: Any) -> Any:
        raise NotImplementedError


def left(
    members: Any, *headers: TensorHeader, quantization: Mapping[str, object] | None = None
) -> tuple[Any, ...]:
    """Return the members that may claim the first tensor."""
    context = EncodingContext(
        by_name={header.name: header for header in headers},
        quantization=quantization or {},
        read_metadata=lambda header: b"",
    )
    templates = frozenset(templates_of(header.name for header in headers))
    claimants = Claimants(members, templates, context)
    return claimants.of(without_ids(headers[0].name), headers[0])


class RuledOut(unittest.TestCase):
    def is_ruled_out(self, ask: Any, *others: str, **quantization: object) -> bool:
        headers = [make_header(name, (4, 4)) for name in (CODES, *others)]
        return not left((Member(ask),), *headers, quantization=quantization)

    def test_is_who_looks_for_nothing(self) -> None:
        self.assertTrue(self.is_ruled_out(lambda header, context: None))

    def test_is_who_looks_for_names_that_no_tensor_has(self) -> None:
        def ask(header: TensorHeader, context: EncodingContext) -> None:
            context.by_name.get(f"{header.name}_scale")

        self.assertTrue(self.is_ruled_out(ask))
        self.assertTrue(self.is_ruled_out(ask, "layers.1.experts.2.w2.weight_scale"))
        # That of another expert: the next tensor may have one.
        self.assertFalse(self.is_ruled_out(ask, "layers.3.experts.0.w1.weight_scale"))
        self.assertFalse(self.is_ruled_out(ask, f"{CODES}_scale"))

    def test_is_not_who_goes_through_all_names(self) -> None:
        self.assertFalse(self.is_ruled_out(lambda header, context: list(context.by_name)))

    def test_is_not_who_reads_content(self) -> None:
        self.assertFalse(self.is_ruled_out(lambda header, context: context.read_metadata(header)))

    def test_is_who_asks_the_config_for_plain_values(self) -> None:
        def ask(header: TensorHeader, context: EncodingContext) -> None:
            context.quantization.get("quant_method")
            len(context.quantization)

        self.assertTrue(self.is_ruled_out(ask, quant_method="fp8"))
        self.assertTrue(self.is_ruled_out(ask))
        self.assertFalse(self.is_ruled_out(ask, quant_method={"nested": 1}))

    def test_is_not_who_may_ask_the_config_for_single_modules(self) -> None:
        def ask(header: TensorHeader, context: EncodingContext) -> None:
            context.quantization.get(header.name)

        self.assertFalse(self.is_ruled_out(ask))
        self.assertFalse(
            self.is_ruled_out(lambda header, context: list(context.quantization.items()), a=1)
        )


class Members(unittest.TestCase):
    def test_are_all_ruled_out_for_plain_weights(self) -> None:
        self.assertEqual(left(MEMBERS, make_header(CODES, (4, 4))), ())

    def test_that_find_a_companion_are_left(self) -> None:
        scale = make_header("layers.0.experts.0.w1.weight_scale_inv", (1, 1), "F32")
        members = left(MEMBERS, make_header(CODES, (4, 4), "F8_E4M3"), scale)
        self.assertEqual([member.name for member in members], ["fp8"])
