"""Which backend quantises what: native kernels where MLX is found equal, else MLX itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from moe_weights.findings import Finding, FindingKind, name_some
from moe_weights.quantize.mlx_backend import DeviceName, MlxBackend
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.round_trip import QuantBackend, SchemeSpec
from moe_weights.quantize.self_check import SelfCheck, check_native

BackendSetting: TypeAlias = Literal["auto", "mlx", "native"]
BackendName: TypeAlias = Literal["native_verified", "mlx", "native"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """Which backend quantises which scheme in which dtype; names only, so that it travels.

    Attributes:
        device: MLX device.
        names: One (scheme, dtype, backend) per pair.
        check: What the self-check found; None where none was made.
        findings: Why MLX stands in for native kernels.
    """

    device: DeviceName
    names: tuple[tuple[str, str, BackendName], ...]
    check: SelfCheck | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def uses_mlx(self) -> bool:
        """MLX itself quantises something."""
        return any(name == "mlx" for _scheme, _dtype, name in self.names)

    def name_of(self, scheme: str, dtype: str) -> BackendName:
        """Return what rows say in the column `backend`.

        Args:
            scheme: Name of the scheme.
            dtype: Name of the dtype that is quantised.

        Raises:
            KeyError: nobody chose for this pair.
        """
        for known_scheme, known_dtype, name in self.names:
            if (known_scheme, known_dtype) == (scheme, dtype):
                return name
        raise KeyError(f"no backend was chosen for scheme {scheme} in {dtype}")

    def backend(self, scheme: str, dtype: str) -> QuantBackend:
        """Return the backend itself; each is opened once per process.

        Raises:
            KeyError: nobody chose for this pair.
            ImportError: MLX was chosen and is not importable here.
            BackendUnavailableError: MLX was chosen and lacks the device here.
        """
        return open_backend(self.name_of(scheme, dtype), self.device)


@lru_cache(maxsize=8)
def open_backend(name: BackendName, device: DeviceName) -> QuantBackend:
    """Return a backend by its name.

    Raises:
        ImportError: mlx is wanted and not importable.
        BackendUnavailableError: mlx is wanted and has no such device here.
    """
    return MlxBackend(device) if name == "mlx" else NativeBackend(name)


def choose_backends(
    schemes: Sequence[SchemeSpec],
    setting: BackendSetting,
    device: DeviceName,
    dtypes: Sequence[str],
    open_mlx: Callable[[DeviceName], QuantBackend] = MlxBackend,
) -> BackendChoice:
    """Choose for every scheme and dtype.

    Args:
        schemes: Those in use.
        setting: "auto" takes native kernels where the installed MLX is equal; "mlx" and "native"
            leave no choice, and "native" needs no MLX.
        device: MLX device.
        dtypes: Names of the dtypes that will be quantised.
        open_mlx: What opens MLX.

    Raises:
        ImportError: mlx is wanted and not importable.
        BackendUnavailableError: mlx is wanted and has no such device here.
    """
    pairs = [(scheme.name, dtype) for scheme in schemes for dtype in dtypes]
    if setting == "native":
        return BackendChoice(device=device, names=tuple((*pair, "native") for pair in pairs))
    mlx_backend = open_mlx(device)
    if setting == "mlx":
        return BackendChoice(device=device, names=tuple((*pair, "mlx") for pair in pairs))
    check = check_native(mlx_backend, schemes, dtypes)
    return BackendChoice(
        device=device,
        names=tuple(
            (pair.scheme, pair.dtype, "mlx" if pair.difference else "native_verified")
            for pair in check.pairs
        ),
        check=check,
        findings=_mismatch_findings(check),
    )


def _mismatch_findings(check: SelfCheck) -> tuple[Finding, ...]:
    differing = [pair for pair in check.pairs if pair.difference]
    if not differing:
        return ()
    names = [f"{pair.scheme} in {pair.dtype}" for pair in differing]
    return (
        Finding(
            kind=FindingKind.QUANT_SIM,
            message="[quant_sim] native kernels differ from the installed MLX, which is used "
            f"instead: {name_some(names, 'scheme')}; first, {differing[0].difference}",
            count=len(differing),
            hint="numbers are MLX's own, only slower; logs/run_context.json lists every scheme",
        ),
    )
