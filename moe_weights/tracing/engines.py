"""Which engine runs a model that somebody named on the command line?"""

from __future__ import annotations

import re
from pathlib import Path

from moe_weights.errors import UsageError
from moe_weights.tracing.engine import ModelEngine, TraceModelError
from moe_weights.tracing.model_config import backend_of, read_model_config
from moe_weights.tracing.toy_engine import ToyEngine

BACKENDS = ("auto", "torch", "mlx")
_TOY = re.compile(r"toy(:[0-9]{0,18})?")


def is_url(text: str) -> bool:
    """Return whether an argument names a server."""
    return text.startswith(("http://", "https://"))


def is_toy(text: str) -> bool:
    """Return whether an argument names the toy model: `toy`, or `toy:<seed>`."""
    return _TOY.fullmatch(text) is not None and not Path(text).exists()


def open_engine(named: str, *, backend: str = "auto", device: str = "cpu") -> ModelEngine:
    """Load a model.

    Args:
        named: Model directory, `toy` or `toy:<seed>`.
        backend: auto takes mlx for what mlx-lm quantised, else torch.
        device: cpu, cuda or mps; for torch alone, MLX uses its default device.

    Raises:
        BackendUnavailableError: the framework or device is not there.
        TraceModelError: the model cannot be loaded.
        UsageError: it is a URL, or the backend is unknown.
    """
    if is_url(named):
        raise UsageError(f"{named}: servers cannot be observed; give a model directory")
    if backend not in BACKENDS:
        raise UsageError(f"backend: {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if is_toy(named):
        return ToyEngine(seed=int(named.partition(":")[2] or 0))
    path = Path(named)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise TraceModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not is_folder:
        raise TraceModelError(f"{path}: not a model directory; give one with a config.json")
    chosen = backend_of(read_model_config(path)) if backend == "auto" else backend
    if chosen == "mlx":
        from moe_weights.tracing.mlx_engine import load_mlx_engine

        return load_mlx_engine(path)
    from moe_weights.tracing.torch_engine import load_torch_engine

    return load_torch_engine(path, device=device)
