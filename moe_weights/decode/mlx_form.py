"""Which form an MLX tensor of packed codes has: settings, companions and shapes held together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.mlx_settings import (
    AFFINE,
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    FLOAT_MODES,
    MlxSettings,
    settings_of,
)
from moe_weights.decode.scale_names import describe
from moe_weights.decode.stored_tensor import EncodingContext, EncodingRefusal, RefusalKind

_SUFFIX = ".weight"
_FLOATS = frozenset({"F32", "F16", "BF16"})
_WORD_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MlxForm:
    """A tensor of packed codes whose meaning is settled.

    Attributes:
        settings: Mode, bits and group size.
        shape: Shape of the values, (..., out, in).
        companions: Role and header: "scale", then "bias" (affine) or "global_scale" (nvfp4).
    """

    settings: MlxSettings
    shape: tuple[int, ...]
    companions: tuple[tuple[str, TensorHeader], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """The codes and what lies beside them."""

    codes: TensorHeader
    module: str
    scales: TensorHeader | None
    biases: TensorHeader | None
    global_scale: TensorHeader | None

    def columns(self, bits: int) -> int | None:
        """Return the columns that the words of a row hold; None if no whole number."""
        n_bits = self.codes.shape[-1] * _WORD_BITS
        return None if n_bits % bits else n_bits // bits

    def refuse(self, kind: RefusalKind, cause: str) -> EncodingRefusal:
        """Return the refusal of this tensor."""
        found = (self.scales, self.biases, self.global_scale)
        return EncodingRefusal(
            name=self.codes.name,
            header=self.codes,
            kind=kind,
            cause=cause,
            companions=tuple(header for header in found if header is not None),
        )


def mlx_form(header: TensorHeader, context: EncodingContext) -> MlxForm | EncodingRefusal | None:
    """Settle what a tensor of packed codes means.

    Args:
        header: Any stored tensor.
        context: The other tensors and the quantisation config.

    Returns:
        Its form; a refusal where companions, config and shapes disagree or leave it open; None for
        a tensor that is not MLX's.
    """
    if header.dtype_code != "U32" or header.ndim < 2 or not header.name.endswith(_SUFFIX):
        return None
    module = header.name.removesuffix(_SUFFIX)
    stored = _Stored(
        codes=header,
        module=module,
        scales=context.by_name.get(f"{module}.scales"),
        biases=context.by_name.get(f"{module}.biases"),
        global_scale=context.by_name.get(f"{module}.global_scale"),
    )
    if stored.scales is None:
        return stored.refuse(
            RefusalKind.MISSING_COMPANION,
            f"codes {describe(header)} without scales; looked for {module}.scales",
        )
    settings: MlxSettings | EncodingRefusal | str | None = settings_of(module, context.quantization)
    if settings is None:
        settings = _settled_by_shapes(stored, stored.scales, context.hidden_sizes)
    if isinstance(settings, EncodingRefusal):
        return settings
    if isinstance(settings, str):
        return stored.refuse(
            RefusalKind.BAD_COMPANION,
            f"codes {describe(header)} with scales {describe(stored.scales)}, but {settings}",
        )
    return _checked(stored, stored.scales, settings)


def _checked(
    stored: _Stored, scales: TensorHeader, settings: MlxSettings
) -> MlxForm | EncodingRefusal:
    codes = stored.codes
    wanted = _FLOATS if settings.mode == AFFINE else frozenset({"U8"})
    n_columns = stored.columns(settings.bits)
    if (
        scales.dtype_code not in wanted
        or scales.ndim != codes.ndim
        or scales.shape[:-1] != codes.shape[:-1]
        or n_columns != scales.shape[-1] * settings.group_size
    ):
        return stored.refuse(
            RefusalKind.BAD_COMPANION,
            f"scales {describe(scales)} do not fit codes {describe(codes)} in {settings}, "
            f"which want {' or '.join(sorted(wanted))} {_wanted_shape(stored, settings)}",
        )
    shape = (*codes.shape[:-1], n_columns)
    companions: tuple[tuple[str, TensorHeader], ...] = (("scale", scales),)
    if settings.mode == AFFINE:
        biases = stored.biases
        if biases is None:
            return stored.refuse(
                RefusalKind.MISSING_COMPANION,
                f"affine codes {describe(codes)} without biases; looked for {stored.module}.biases",
            )
        if biases.dtype_code not in _FLOATS or biases.shape != scales.shape:
            return stored.refuse(
                RefusalKind.BAD_COMPANION,
                f"biases {describe(biases)} do not fit scales {describe(scales)}: "
                "both want a float dtype and the same shape",
            )
        companions += (("bias", biases),)
    elif stored.biases is not None:
        return stored.refuse(
            RefusalKind.BAD_COMPANION,
            f"{settings.mode} codes have no biases, but {describe(stored.biases)} lies beside them",
        )
    return _with_global_scale(
        stored, MlxForm(settings=settings, shape=shape, companions=companions)
    )


def _with_global_scale(stored: _Stored, form: MlxForm) -> MlxForm | EncodingRefusal:
    found = stored.global_scale
    if found is None:
        if not form.settings.global_scale:
            return form
        return stored.refuse(
            RefusalKind.MISSING_COMPANION,
            f"config.json announces a global scale; looked for {stored.module}.global_scale",
        )
    lead = form.shape[:-2]
    if (
        form.settings.mode != "nvfp4"
        or found.dtype_code != "F32"
        or found.shape not in ((lead,) if lead else ((), (1,)))
    ):
        return stored.refuse(
            RefusalKind.BAD_COMPANION,
            f"global scale {describe(found)} does not fit {form.settings.mode} codes "
            f"{describe(stored.codes)}: nvfp4 wants F32 {list(lead)}",
        )
    return MlxForm(
        settings=form.settings,
        shape=form.shape,
        companions=(*form.companions, ("global_scale", found)),
    )


def _settled_by_shapes(
    stored: _Stored, scales: TensorHeader, hidden_sizes: frozenset[int]
) -> MlxSettings | EncodingRefusal:
    """Return the only settings whose columns are a width that an expert matrix may have."""
    groups = scales.shape[-1] if scales.ndim else 0
    fitting = [
        (settings, n_columns)
        for settings in _candidates(stored, scales)
        if (n_columns := stored.columns(settings.bits)) == groups * settings.group_size
    ]
    named = [settings for settings, n_columns in fitting if n_columns in hidden_sizes]
    if len(named) == 1:
        return named[0]
    readings = ", ".join(f"{n_columns} ({settings})" for settings, n_columns in fitting)
    return stored.refuse(
        RefusalKind.AMBIGUOUS_ENCODING if fitting else RefusalKind.BAD_COMPANION,
        f"codes {describe(stored.codes)} with scales {describe(scales)}: "
        "config.json does not say how MLX packed them, and "
        + (
            f"of the columns they may have, {readings}, {len(named) or 'none'} are widths of "
            "expert matrices by config.json; add its `quantization` block"
            if fitting
            else "no form of MLX has these shapes"
        ),
    )


def _candidates(stored: _Stored, scales: TensorHeader) -> Iterator[MlxSettings]:
    if scales.dtype_code == "U8":
        for mode, (bits, group_size) in FLOAT_MODES.items():
            yield MlxSettings(mode=mode, bits=bits, group_size=group_size)
        return
    for bits in AFFINE_BITS:
        for group_size in AFFINE_GROUP_SIZES:
            yield MlxSettings(mode=AFFINE, bits=bits, group_size=group_size)


def _wanted_shape(stored: _Stored, settings: MlxSettings) -> str:
    n_columns = stored.columns(settings.bits)
    if n_columns is None or n_columns % settings.group_size:
        return f"whole groups ({stored.codes.shape[-1] * _WORD_BITS} bits a row are none)"
    return str([*stored.codes.shape[:-1], n_columns // settings.group_size])
