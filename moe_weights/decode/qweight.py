"""Codes called `X.qweight`: which family wrote them, AWQ or GPTQ, and what lies beside them.

Both use the names `X.qweight`, `X.qzeros`, `X.scales`. AWQ packs along the outputs, (in, out / 8);
GPTQ along the inputs, (in * bits / 32, out). config.json names the family; where it is silent the
width of the scales, which is that of the outputs, tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.scale_names import describe
from moe_weights.decode.stored_tensor import EncodingContext, EncodingRefusal, RefusalKind

AWQ = "awq"
GPTQ = "gptq"
SCALE_CODES = frozenset({"F16", "BF16", "F32"})

_SUFFIX = ".qweight"
_PER_WORD = 8  # AWQ: 4-bit codes in 32-bit words


@dataclass(frozen=True, slots=True, kw_only=True)
class Qweight:
    """The codes of a matrix and the companions that were found.

    Attributes:
        codes: `X.qweight`, I32 of two axes.
        module: X.
        family: `AWQ` or `GPTQ`.
        scales: `X.scales`, a float dtype, two axes.
        qzeros: `X.qzeros`, I32 of two axes.
        g_idx: `X.g_idx`.
    """

    codes: TensorHeader
    module: str
    family: str
    scales: TensorHeader | None
    qzeros: TensorHeader | None
    g_idx: TensorHeader | None

    @property
    def name(self) -> str:
        """Logical name, that of the weights as if they were plain."""
        return f"{self.module}.weight"

    def refuse(self, kind: RefusalKind, cause: str) -> EncodingRefusal:
        """Return the refusal of this tensor."""
        found = (self.scales, self.qzeros, self.g_idx)
        return EncodingRefusal(
            name=self.name,
            header=self.codes,
            kind=kind,
            cause=cause,
            companions=tuple(header for header in found if header is not None),
        )

    def refuse_missing(self, word: str) -> EncodingRefusal:
        """Return the refusal for a companion that is not there."""
        return self.refuse(
            RefusalKind.MISSING_COMPANION,
            f"{self.family.upper()} codes {describe(self.codes)} without {word}; "
            f"looked for {self.module}.{word}",
        )

    def refuse_misfit(self, companion: TensorHeader, want: str) -> EncodingRefusal:
        """Return the refusal for a companion of the wrong dtype or shape."""
        return self.refuse(
            RefusalKind.BAD_COMPANION,
            f"{describe(companion)} does not fit {self.family.upper()} codes "
            f"{describe(self.codes)}, which want {want}",
        )


def find_qweight(header: TensorHeader, context: EncodingContext) -> Qweight | None:
    """Return the codes and what lies beside them; None for tensors of other names.

    Args:
        header: Any stored tensor.
        context: The other tensors and the quantisation config.
    """
    if not header.name.endswith(_SUFFIX):
        return None
    module = header.name.removesuffix(_SUFFIX)
    scales = context.by_name.get(f"{module}.scales")
    return Qweight(
        codes=header,
        module=module,
        family=_family(header, scales, context),
        scales=scales,
        qzeros=context.by_name.get(f"{module}.qzeros"),
        g_idx=context.by_name.get(f"{module}.g_idx"),
    )


def refuse_codes(found: Qweight) -> EncodingRefusal | None:
    """Return the refusal of codes that no writer of either family stores."""
    if found.codes.dtype_code != "I32":
        return found.refuse(
            RefusalKind.UNKNOWN_DTYPE,
            f"codes {describe(found.codes)} are not packed into I32, the only words that are read",
        )
    if found.codes.ndim != 2 or 0 in found.codes.shape:
        return found.refuse(
            RefusalKind.BAD_COMPANION,
            f"codes {describe(found.codes)} must have two axes, none of them empty",
        )
    return None


def config_word(context: EncodingContext, key: str) -> str | None:
    """Return a value of the quantisation config as text in lower case; None when it is not there.

    What is no text is no word that anybody knows, and so refused, not overlooked.
    """
    value = context.quantization.get(key)
    return None if value is None else str(value).lower()


def config_number(context: EncodingContext, key: str) -> int | None:
    """Return an integer of the quantisation config; None when it is not there."""
    value = context.quantization.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _family(header: TensorHeader, scales: TensorHeader | None, context: EncodingContext) -> str:
    method = config_word(context, "quant_method")
    if method is not None:
        # Unknown methods are refused once, by the member for GPTQ.
        return AWQ if method == AWQ else GPTQ
    packs_outputs = (
        scales is not None
        and scales.ndim == header.ndim == 2
        and scales.shape[1] == header.shape[1] * _PER_WORD
    )
    return AWQ if packs_outputs else GPTQ
