"""How is a model folder loaded by transformers, to be run and observed: whole, local, or refused?

Nothing is downloaded, and no code that lies in the folder is run. The library is imported when it
is used; it is an extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_weights.errors import BackendUnavailableError, CheckpointError

_MODEL_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
)
_PACKAGES = {"mlx": "mlx-lm", "mlx_lm": "mlx-lm"}


def import_framework(name: str, purpose: str) -> Any:
    """Import an optional framework.

    Args:
        name: Module, for example `torch`.
        purpose: What needs it, for the message: "capturing".

    Raises:
        BackendUnavailableError: it cannot be imported; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = _PACKAGES.get(name.partition(".")[0], "'moe-weights[capture]'")
        raise BackendUnavailableError(
            f"{purpose} needs {name}, which cannot be imported ({error}); install it with: "
            f"pip install {package}"
        ) from error


def load_network(
    transformers: Any, model_path: Path, error_type: type[CheckpointError] = CheckpointError
) -> tuple[Any, Mapping[str, Any]]:
    """Load a language model in the dtype that it was saved in.

    Args:
        transformers: The library.
        model_path: Folder with config.json and weights.
        error_type: What is raised.

    Returns:
        The model, and what the library tells about loading it.

    Raises:
        CheckpointError: it cannot be loaded, or weights of it are missing; of `error_type`.
    """
    transformers.utils.logging.disable_progress_bar()
    refusals = []
    for name in _MODEL_CLASSES:
        try:
            network, loading = getattr(transformers, name).from_pretrained(
                str(model_path),
                dtype="auto",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:
            # Each model class and file format of the library raises errors of its own.
            refusals.append((error, f"{name}: {first_line(error)}"))
            continue
        for what in ("missing_keys", "mismatched_keys"):
            names = sorted(map(str, loading.get(what, ())))
            if names:
                # The library fills such weights with random numbers.
                raise error_type(
                    f"{model_path}: {len(names)} weights are {what.partition('_')[0]}, for example "
                    f"{names[0]}; the model would run with random ones"
                )
        return network, loading
    raise error_type(f"{model_path}: transformers cannot load it: {refusals[0][1]}") from refusals[
        0
    ][0]


def load_tokenizer(
    model_path: Path,
    purpose: str,
    error_type: type[CheckpointError] = CheckpointError,
    advice: str = "",
) -> Any:
    """Return the tokenizer that lies in a model folder, or None; loads nothing where none lies.

    Args:
        model_path: The folder.
        purpose: See `import_framework`.
        error_type: What is raised.
        advice: What can be done without it, for the message.

    Raises:
        BackendUnavailableError: transformers is not installed.
        CheckpointError: its files cannot be read; of `error_type`.
    """
    if not any((model_path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    transformers = import_framework("transformers", purpose)
    try:
        # Left out, trust_remote_code has the library ask on the terminal.
        return transformers.AutoTokenizer.from_pretrained(
            str(model_path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # Each tokenizer class of the library raises errors of its own.
        raise error_type(
            f"{model_path}: its tokenizer cannot be loaded: {first_line(error)}"
            + (f"; {advice}" if advice else "")
        ) from error


def use_plain_experts(network: Any, device: str) -> None:
    """Have a CPU run one plain product per expert.

    The library's grouped product refuses widths that are no multiple of 16 bytes, and plain ones
    are what others are held against.
    """
    if device == "cpu" and hasattr(network, "set_experts_implementation"):
        network.set_experts_implementation("eager")


def byte_tokens(text: str, vocabulary_size: int) -> tuple[int, ...]:
    """Return the UTF-8 bytes of a text, modulo the vocabulary, as token ids."""
    encoded = text.encode("utf-8", errors="surrogatepass")
    return tuple(byte % vocabulary_size for byte in encoded)


def first_line(error: BaseException) -> str:
    """Return what kind of error it is and the first line of its text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"
