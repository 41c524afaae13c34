"""One small stored tensor of every encoding and form, with random codes."""

from __future__ import annotations

import numpy as np

from tests.support.encoded_form import FUSED, EncodedForm
from tests.support.integer_forms import int8_forms, packed_int_forms
from tests.support.library_forms import awq_forms, bitsandbytes_forms, gptq_forms, mlx_forms
from tests.support.scaled_forms import FP8, fp8_forms, mxfp4_forms, nvfp4_forms

__all__ = ["FP8", "FUSED", "EncodedForm", "every_form"]


def every_form() -> dict[str, EncodedForm]:
    """Return the forms by what sets them apart; the same numbers each time."""
    rng = np.random.default_rng(0)
    return {
        **fp8_forms(rng),
        **mxfp4_forms(rng),
        **nvfp4_forms(rng),
        **mlx_forms(rng),
        **packed_int_forms(rng),
        **int8_forms(rng),
        **gptq_forms(rng),
        **awq_forms(rng),
        **bitsandbytes_forms(rng),
    }
