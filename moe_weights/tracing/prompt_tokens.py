"""Which token ids does a prompt have?

The model's own tokeniser decides. A model without one gets the bytes of the prompt, which is said
in the notes: two models can still be compared on the same ids.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from moe_weights.errors import BackendUnavailableError, UsageError
from moe_weights.tracing.engine import TraceModelError

NO_TOKENIZER_NOTE = "no tokeniser: the ids are the prompt's bytes modulo the vocabulary"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
)


class PromptTokenizer:
    """The tokeniser of a model directory, or bytes where there is none."""

    def __init__(self, tokenizer: Any, vocabulary_size: int) -> None:
        """Keep the tokeniser.

        Args:
            tokenizer: As transformers gives it; None uses bytes.
            vocabulary_size: Ids from bytes are below this.
        """
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model brought one."""
        return self._tokenizer is not None

    def tokenize(self, text: str, *, apply_chat_template: bool) -> tuple[int, ...]:
        """Return the token ids of a text.

        Raises:
            UsageError: a chat template is asked for and there is none.
        """
        if apply_chat_template:
            if not getattr(self._tokenizer, "chat_template", None):
                raise UsageError(
                    "apply_chat_template: the model has no chat template; ask without one"
                )
            messages = [{"role": "user", "content": text}]
            text = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            encoded = self._tokenizer(text, add_special_tokens=False)
            return tuple(int(token_id) for token_id in encoded["input_ids"])
        if self._tokenizer is None:
            return byte_tokens(text, self._vocabulary_size)
        return tuple(int(token_id) for token_id in self._tokenizer(text)["input_ids"])


def byte_tokens(text: str, vocabulary_size: int) -> tuple[int, ...]:
    """Return the UTF-8 bytes of a text, modulo the vocabulary, as token ids."""
    encoded = text.encode("utf-8", errors="surrogatepass")
    return tuple(byte % vocabulary_size for byte in encoded)


def load_tokenizer(model_path: Path) -> Any:
    """Return the tokeniser that lies in a model directory, or None.

    Raises:
        BackendUnavailableError: transformers is not installed.
        TraceModelError: its files cannot be read.
    """
    if not any((model_path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    transformers = import_backend("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
    except Exception as error:
        # Each tokeniser class of the library raises errors of its own.
        raise TraceModelError(
            f"{model_path}: its tokeniser cannot be loaded: {first_line(error)}; give token ids "
            "with --prompt-ids"
        ) from error


def import_backend(name: str) -> Any:
    """Import an optional framework.

    Raises:
        BackendUnavailableError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"mlx_lm": "mlx-lm", "mlx": "mlx-lm"}.get(name.partition(".")[0])
        wanted = package or "'moe-weights[capture]'"
        raise BackendUnavailableError(
            f"running a model needs {name}, which cannot be imported ({error}); install it with: "
            f"pip install {wanted}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return what kind of error it is and the first line of its text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"
