"""Small stored tensors of the integers of compressed-tensors, and of INT8."""

from __future__ import annotations

import numpy as np

from tests.support.encoded_form import BF16, EncodedForm, W, draw_bytes, draw_floats, draw_words
from tests.support.packed_ints import config, scheme


def packed_int_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    groups = {"strategy": "group", "group_size": 32}
    asymmetric = groups | {"symmetric": False}
    for label, shape, bits, scale_shape, more, settings in (
        ("channel", (20, 96), 4, (20, 1), {}, {}),
        ("tensor", (20, 96), 4, (1,), {}, {"strategy": "tensor"}),
        ("group", (20, 96), 4, (20, 3), {}, groups),
        ("group, ragged words", (20, 70), 4, (20, 3), {}, groups),
        ("group, 3 bits", (20, 96), 3, (20, 3), {}, groups),
        ("group, 8 bits", (20, 96), 8, (20, 3), {}, groups),
        ("stacked group", (3, 20, 96), 4, (3, 20, 3), {}, groups),
        (
            "packed zero points",
            (20, 96),
            4,
            (20, 3),
            {"zero_point": draw_words(rng, 3, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "stacked packed zero points",
            (3, 20, 96),
            8,
            (3, 20, 3),
            {"zero_point": draw_words(rng, 3, 5, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "packed zero points, 3 bits",
            (96, 96),
            3,
            (96, 3),
            {"zero_point": draw_words(rng, 9, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "stacked packed zero points, 3 bits",
            (3, 32, 96),
            3,
            (3, 32, 3),
            {"zero_point": draw_words(rng, 3, 3, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "ragged packed zero points, 3 bits",
            (20, 96),
            3,
            (20, 3),
            {"zero_point": draw_words(rng, 2, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "plain zero points",
            (20, 96),
            4,
            (20, 3),
            {"zero_point": draw_bytes(rng, 20, 3).view(np.int8) // 16},
            asymmetric,
        ),
        (
            "group index",
            (20, 96),
            4,
            (20, 3),
            {"g_idx": rng.integers(0, 3, 96).astype(np.int32)},
            groups,
        ),
        (
            "stacked group index",
            (3, 20, 96),
            4,
            (3, 20, 3),
            {"g_idx": rng.integers(0, 3, (3, 96)).astype(np.int32)},
            groups,
        ),
    ):
        n_words = -(-shape[-1] * bits // 32)
        arrays = {
            f"{W}_packed": draw_words(rng, *shape[:-1], n_words).view(np.int32),
            f"{W}_scale": draw_floats(rng, *scale_shape).astype(BF16),
            f"{W}_shape": np.array(shape, dtype=np.int64),
        }
        forms[f"packed int {label}"] = EncodedForm(
            encoding="packed_int",
            shape=shape,
            arrays=arrays | {f"{W}_{role}": array for role, array in more.items()},
            quantization=config(scheme(bits, **settings)),
            is_cuttable=label != "ragged packed zero points, 3 bits",
            has_columns="index" not in label and 32 % bits == 0,
        )
    return forms


def int8_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    groups = {"strategy": "group", "group_size": 16}
    for label, shape, more, settings in (
        ("channel", (20, 48), {"weight_scale": draw_floats(rng, 20, 1)}, {}),
        ("group", (20, 48), {"weight_scale": draw_floats(rng, 20, 3)}, groups),
        (
            "block",
            (20, 40),
            {"weight_scale": draw_floats(rng, 3, 3)},
            {"strategy": "block", "block_structure": [8, 16]},
        ),
        (
            "zero points",
            (20, 48),
            {
                "weight_scale": draw_floats(rng, 20, 3),
                "weight_zero_point": draw_bytes(rng, 20, 3).view(np.int8),
            },
            groups | {"symmetric": False},
        ),
        (
            "group index",
            (20, 48),
            {
                "weight_scale": draw_floats(rng, 20, 3),
                "weight_g_idx": rng.integers(0, 3, 48).astype(np.int32),
            },
            groups,
        ),
        ("row maxima", (20, 48), {"SCB": draw_floats(rng, 20)}, None),
        (
            "stacked",
            (3, 20, 48),
            {"weight_scale": draw_floats(rng, 3, 20, 3)},
            groups,
        ),
    ):
        module = W.removesuffix("weight")
        forms[f"int8 {label}"] = EncodedForm(
            encoding="int8",
            shape=shape,
            arrays={
                W: draw_bytes(rng, *shape).view(np.int8),
                **{f"{module}{word}": array for word, array in more.items()},
            },
            quantization={} if settings is None else config(scheme(8, **settings)),
            has_columns=label != "group index",
        )
    return forms
