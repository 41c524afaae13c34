"""Which token ids does a prompt have?

The model's own tokeniser decides. A model without one gets the bytes of the prompt, which is said
in the notes: two models can still be compared on the same ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_weights import live_models
from moe_weights.errors import UsageError
from moe_weights.live_models import byte_tokens
from moe_weights.tracing.engine import LoadedModel, TraceModelError

PURPOSE = "running a model"
NO_TOKENIZER_NOTE = "no tokeniser: the ids are the prompt's bytes modulo the vocabulary"


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


class TokenizingEngine:
    """What the engines of this package have beside a framework: a model and its tokeniser."""

    def __init__(self, model: LoadedModel, tokenizer: PromptTokenizer) -> None:
        """Keep both."""
        self._model = model
        self._tokenizer = tokenizer

    @property
    def model(self) -> LoadedModel:
        """What is known about the model."""
        return self._model

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model brought a tokeniser."""
        return self._tokenizer.has_tokenizer

    def tokenize(self, text: str, *, apply_chat_template: bool) -> tuple[int, ...]:
        """Return the token ids of a text, see `PromptTokenizer`."""
        return self._tokenizer.tokenize(text, apply_chat_template=apply_chat_template)


def load_tokenizer(model_path: Path) -> Any:
    """Return the tokeniser that lies in a model directory, or None.

    Raises:
        BackendUnavailableError: transformers is not installed.
        TraceModelError: its files cannot be read.
    """
    advice = "give token ids with --prompt-ids"
    return live_models.load_tokenizer(model_path, PURPOSE, TraceModelError, advice)
