"""Every encoding, the most particular first: a member may only claim what no earlier one did."""

from __future__ import annotations

from moe_weights.decode.awq import Awq
from moe_weights.decode.bitsandbytes_4bit import Bitsandbytes4Bit
from moe_weights.decode.encoding import Encoding
from moe_weights.decode.fp8 import Fp8
from moe_weights.decode.gptq import Gptq
from moe_weights.decode.int8 import Int8
from moe_weights.decode.mlx_packed import MLX_MEMBERS
from moe_weights.decode.mxfp4 import Mxfp4
from moe_weights.decode.nvfp4 import Nvfp4
from moe_weights.decode.packed_int import PackedInt

MEMBERS: tuple[Encoding, ...] = (
    Bitsandbytes4Bit(),
    PackedInt(),
    *MLX_MEMBERS,
    Awq(),
    Gptq(),
    Nvfp4(),
    Mxfp4(),
    Fp8(),
    Int8(),
)
