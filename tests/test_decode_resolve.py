"""Codes and companions joined over a whole checkpoint: each stored tensor has one place."""

from __future__ import annotations

import unittest
from collections.abc import Mapping, Sequence

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.members import MEMBERS
from moe_weights.decode.resolve import resolve_encodings
from moe_weights.decode.stored_tensor import (
    EncodingContext,
    RefusalKind,
    Resolution,
    StoredTensor,
)
from tests.support.extraction import make_header


def resolve(
    headers: Sequence[TensorHeader], quantization: Mapping[str, object] | None = None
) -> Resolution:
    context = EncodingContext(
        by_name={header.name: header for header in headers},
        quantization=quantization or {},
        read_metadata=lambda header: b"",
    )
    return resolve_encodings(headers, context)


def places(resolution: Resolution) -> dict[str, str]:
    """Return the one place of each stored tensor."""
    found: dict[str, str] = {}
    for place, names in (
        ("tensor", [tensor.header.name for tensor in resolution.tensors]),
        ("refusal", [refusal.header.name for refusal in resolution.refusals]),
        ("companion", list(resolution.companions)),
        ("other", [header.name for header in resolution.others]),
    ):
        for name in names:
            assert name not in found, name
            found[name] = place
    return found


def fp8(name: str, file: str = "a.safetensors") -> TensorHeader:
    return make_header(name, (128, 256), "F8_E4M3", file=file)


def scale_of(name: str, file: str = "a.safetensors") -> TensorHeader:
    return make_header(f"{name}_scale_inv", (1, 2), "F32", file=file)


class StoredTensors(unittest.TestCase):
    def test_have_exactly_one_place_each(self) -> None:
        headers = [
            make_header("plain.weight", (4, 4)),
            fp8("codes.weight"),
            scale_of("codes.weight"),
            fp8("bare.weight"),
            make_header("ids", (4,), "I64"),
            make_header("new", (4,), "F3_NEW"),
            make_header("lost.weight_scale_inv", (1, 1), "F32"),
        ]
        self.assertEqual(
            places(resolve(headers)),
            {
                "plain.weight": "tensor",
                "codes.weight": "tensor",
                "codes.weight_scale_inv": "companion",
                "bare.weight": "refusal",
                "ids": "other",
                "new": "other",
                "lost.weight_scale_inv": "tensor",
            },
        )

    def test_of_float_dtypes_are_plain_where_no_encoding_claims_them(self) -> None:
        for code in ("F64", "F32", "F16", "BF16"):
            header = make_header("x.weight", (4, 6), code)
            self.assertEqual(
                resolve([header]).tensors,
                (StoredTensor(name="x.weight", encoding="plain", header=header, shape=(4, 6)),),
            )

    def test_keep_the_order_of_their_codes(self) -> None:
        names = [f"w{number}.weight" for number in (3, 1, 2)]
        headers = [header for name in names for header in (scale_of(name), fp8(name))]
        self.assertEqual([tensor.name for tensor in resolve(headers).tensors], names)

    def test_of_nothing_are_none(self) -> None:
        self.assertEqual(places(resolve([])), {})


class Companions(unittest.TestCase):
    def test_are_found_in_other_shards(self) -> None:
        name = "w.weight"
        headers = [scale_of(name, "z.safetensors"), fp8(name)]
        resolution = resolve(headers)
        (tensor,) = resolution.tensors
        self.assertEqual(tensor.companions, (("scale", headers[0]),))
        self.assertEqual(resolution.companions, {f"{name}_scale_inv": name})
        self.assertEqual(tensor.nbytes, sum(header.nbytes for header in headers))
        self.assertEqual(tensor.parts, (("weight", headers[1]), ("scale", headers[0])))

    def test_of_which_there_are_several_are_no_choice(self) -> None:
        name = "w.weight"
        scales = [scale_of(name, file) for file in ("a.safetensors", "b.safetensors")]
        resolution = resolve([fp8(name), *scales])
        self.assertEqual(resolution.tensors, ())
        (refusal,) = resolution.refusals
        self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)
        self.assertEqual(
            refusal.cause,
            "w.weight has several w.weight_scale_inv, in a.safetensors and b.safetensors; keep "
            "the one that belongs to it",
        )

    def test_of_a_refused_tensor_are_explained_by_it(self) -> None:
        name = "w.weight"
        wrong = make_header(f"{name}_scale_inv", (7, 7), "F32")
        resolution = resolve([fp8(name), wrong])
        (refusal,) = resolution.refusals
        self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)
        for text in (name, wrong.name, "[7, 7]", "[128, 256]"):
            self.assertIn(text, refusal.cause)
        self.assertEqual(places(resolution), {name: "refusal", wrong.name: "companion"})

    def test_that_belong_to_nothing_are_plain_or_refused_by_their_dtype(self) -> None:
        orphan = make_header("w.weight_scale", (4, 4), "F8_E4M3")
        (refusal,) = resolve([orphan]).refusals
        self.assertEqual((refusal.header, refusal.kind), (orphan, RefusalKind.MISSING_COMPANION))

    def test_of_activations_are_explained_though_no_value_needs_them(self) -> None:
        name = "w.weight"
        headers = [fp8(name), scale_of(name), make_header("w.input_scale", (), "F32")]
        self.assertEqual(places(resolve(headers))["w.input_scale"], "companion")


class NamesInSeveralFiles(unittest.TestCase):
    def test_take_the_companions_of_their_own_file(self) -> None:
        name = "w.weight"
        headers = [make(name, file) for file in "ab" for make in (fp8, scale_of)]
        resolution = resolve(headers)
        self.assertEqual(
            [
                (tensor.header.file, [part.file for _role, part in tensor.companions])
                for tensor in resolution.tensors
            ],
            [("a", ["a"]), ("b", ["b"])],
        )
        self.assertEqual(
            sum(tensor.nbytes for tensor in resolution.tensors),
            sum(header.nbytes for header in headers),
        )

    def test_take_those_of_another_file_where_their_own_has_none(self) -> None:
        name = "w.weight"
        headers = [fp8(name, "a"), fp8(name, "b"), scale_of(name, "b"), fp8("v.weight", "a"),
                   scale_of("v.weight", "c")]  # fmt: skip
        self.assertEqual(
            [
                [part.file for _role, part in tensor.companions]
                for tensor in resolve(headers).tensors
            ],
            [["b"], ["b"], ["c"]],
        )


class Members(unittest.TestCase):
    def test_have_names_of_their_own_and_none_is_plain(self) -> None:
        names = [member.name for member in MEMBERS]
        self.assertEqual(len(set(names)), len(names))
        self.assertNotIn("plain", names)

    def test_never_claim_a_plain_weight(self) -> None:
        for code in ("F64", "F32", "F16", "BF16"):
            for shape in ((8,), (8, 32), (2, 8, 32), (2, 2, 8, 32)):
                header = make_header("x.weight", shape, code)
                (tensor,) = resolve([header]).tensors
                self.assertEqual(tensor.encoding, "plain")


class Options(unittest.TestCase):
    def test_are_looked_up_by_key(self) -> None:
        header = make_header("x", (2, 4))
        tensor = StoredTensor(
            name="x", encoding="e", header=header, shape=(2, 8), options=(("bits", 4),)
        )
        self.assertEqual((tensor.option("bits"), tensor.ndim, tensor.n_elements), (4, 2, 16))
        with self.assertRaises(KeyError):
            tensor.option("group_size")
