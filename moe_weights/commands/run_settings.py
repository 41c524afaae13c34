"""From config and plan to what the workers are told."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace

from moe_weights.atomic_files import JsonValue
from moe_weights.columns import Column
from moe_weights.commands.survey import Survey
from moe_weights.commands.work import quantised_dtype
from moe_weights.config.load import LoadedConfig
from moe_weights.errors import ConfigError, ConfigProblem
from moe_weights.findings import Finding, FindingKind
from moe_weights.measure.metric_table import metric_columns
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.choose_backend import BackendChoice, choose_backends
from moe_weights.quantize.error import EXTRA_COLUMNS
from moe_weights.quantize.round_trip import SchemeSpec

_MLX_MISSING = "mlx is not importable; skipping quantization simulations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Which schemes are simulated, and by what.

    Attributes:
        schemes: In the order of the config; empty when nothing is simulated.
        backends: What quantises each scheme and dtype.
        findings: Why none, or not the fast way.
    """

    schemes: tuple[SchemeSpec, ...]
    backends: BackendChoice
    findings: tuple[Finding, ...] = ()

    @property
    def self_check_json(self) -> JsonValue:
        """How native kernels compare with the installed MLX; None where nobody asked."""
        check = self.backends.check
        return None if check is None else check.as_json()


def measure_settings(loaded: LoadedConfig) -> MeasureSettings:
    """Return how matrices are measured.

    Raises:
        ConfigError: `stats.metrics` names what does not exist.
    """
    stats = loaded.config.stats
    everything = MeasureSettings(
        eps=stats.eps,
        percentiles_abs=stats.percentiles_abs,
        group_outlier_percentile=stats.group_outlier_percentile,
        group_sizes=tuple(dict.fromkeys(stats.group_sizes_lastdim)),
        sample_per_matrix=stats.sample_per_matrix,
        sample_seed=stats.sample_seed,
    )
    if stats.metrics is None:
        return everything
    known = [column.name for column in (*metric_columns(everything), *EXTRA_COLUMNS)]
    problems = [
        ConfigProblem(
            path=f"$.stats.metrics[{position}]",
            message=f"{json.dumps(name, ensure_ascii=False)} is no metric; known are "
            f"{', '.join(known)}",
        )
        for position, name in enumerate(stats.metrics)
        if name not in known
    ]
    if problems:
        raise ConfigError(str(loaded.source), problems)
    return replace(everything, metrics=frozenset(stats.metrics))


def quant_number_columns(loaded: LoadedConfig) -> tuple[Column, ...]:
    """Return the additive columns of quant_sim that the config chooses."""
    chosen = loaded.config.stats.metrics
    return tuple(column for column in EXTRA_COLUMNS if chosen is None or column.name in chosen)


def choose_simulation(loaded: LoadedConfig, survey: Survey) -> Simulation:
    """Decide what is simulated and by what; native kernels are held against MLX here.

    Raises:
        BackendUnavailableError: MLX has no such device here.
    """
    config = loaded.config
    schemes = tuple(
        SchemeSpec(
            name=scheme.name, mode=scheme.mode, bits=scheme.bits, group_size=scheme.group_size
        )
        for scheme in config.quant_schemes
        if scheme.enabled
    )
    nothing = Simulation(schemes=(), backends=BackendChoice(device=config.mlx.device, names=()))
    if not config.mlx.enabled or not schemes:
        return nothing
    dtypes = sorted({quantised_dtype(unit) for unit in survey.plan.units})
    try:
        choice = choose_backends(schemes, config.mlx.backend, config.mlx.device, dtypes)
    except ImportError as error:
        warnings.warn(_MLX_MISSING, RuntimeWarning, stacklevel=2)
        finding = Finding(
            kind=FindingKind.QUANT_SIM,
            message=f"[quant_sim] {_MLX_MISSING}",
            hint=f'install mlx, set mlx.backend to "native", or mlx.enabled to false ({error})',
        )
        return replace(nothing, findings=(finding,))
    return Simulation(schemes=schemes, backends=choice, findings=choice.findings)


def described_by(survey: Survey) -> JsonValue:
    """Return what says how the shards are to be read, for the run's fingerprint."""
    index = survey.files.index.index
    return [
        dict(survey.model_config.raw) if survey.model_config is not None else None,
        dict(survey.quantization),  # type: ignore[arg-type] # parsed from JSON
        None if index is None else dict(index.weight_map),
    ]
