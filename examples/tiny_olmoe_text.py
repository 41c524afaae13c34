"""What the tiny OLMoE is trained and judged on: text that ships with Python, as tokens."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import tokenizers
import torch
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
VOCAB_SIZE = 1800
CONTEXT = 256
HELD_OUT_ONE_IN = 20
SKIPPED_PARTS = frozenset(
    {
        "__pycache__",
        "antigravity",
        "dist-packages",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "this",
        "turtledemo",
    }
)
"""Parts of standard library paths that hold tests, generated tables or vendored packages."""


@dataclass(frozen=True)
class Split:
    """The text of one side of the split, as one string per document."""

    documents: list[str]

    @property
    def characters(self) -> int:
        """Total number of characters."""
        return sum(map(len, self.documents))

    @property
    def sha256(self) -> str:
        """SHA-256 of all documents in order, each ended by a NUL byte."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.encode())
            digest.update(b"\0")
        return digest.hexdigest()


def read_docstrings() -> Iterator[tuple[str, str]]:
    """Yield the docstrings of the standard library's own modules.

    Yields:
        The name of a document, such as ``stdlib/json/__init__.py``, and all docstrings of that
        file joined by blank lines.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        parts = relative.with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or SKIPPED_PARTS.intersection(parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
        text = "\n\n".join(docstring for docstring in found if docstring)
        if text:
            yield f"stdlib/{relative.as_posix()}", text


def drop_repeated_paragraphs(documents: Mapping[str, str]) -> dict[str, str]:
    """Keep only the first occurrence of every paragraph.

    Many help topics are sections of larger ones. Were both kept, the held-out side of the split
    would contain text that the model was trained on.

    Args:
        documents: Text by document name.

    Returns:
        The documents that still have text, in the same order.
    """
    seen: set[str] = set()
    result: dict[str, str] = {}
    for name, text in documents.items():
        kept: list[str] = []
        for paragraph in text.split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                kept.append(paragraph.strip("\n"))
        if kept:
            result[name] = "\n\n".join(kept) + "\n"
    return result


def read_splits() -> tuple[Split, Split]:
    """Collect the text and split it by whole documents.

    Returns:
        The training split and the held-out split. Which side a document is on depends only on
        the SHA-256 of its name.
    """
    documents = {f"topics/{name}": text for name, text in sorted(topics.items())}
    documents.update(read_docstrings())
    train: list[str] = []
    held_out: list[str] = []
    for name, text in drop_repeated_paragraphs(documents).items():
        bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN
        (train if bucket else held_out).append(text)
    return Split(train), Split(held_out)


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Args:
        documents: The text to learn merges from.

    Returns:
        The tokenizer in the form that ``transformers`` saves and loads.
    """
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=2 * CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, split: Split) -> Tensor:
    """Encode documents as one stream, each ended by the end-of-text token.

    Args:
        tokenizer: The tokenizer.
        split: The documents.

    Returns:
        A one-dimensional tensor of token ids.
    """
    ids: list[int] = []
    for document in split.documents:
        ids.extend(tokenizer.backend_tokenizer.encode(document).ids)
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def held_out_windows(stream: Tensor) -> Tensor:
    """Cut a token stream into windows whose targets do not overlap.

    Args:
        stream: Token ids.

    Returns:
        Token ids of shape ``(windows, CONTEXT + 1)``. The last token of a window is the first
        one of the next; a shorter rest is left out.
    """
    return stream.unfold(0, CONTEXT + 1, CONTEXT)


def unigram_entropy(tokens: Tensor) -> float:
    """Return the entropy in nats of the tokens' own frequencies.

    No predictor that ignores context can have a smaller loss on these tokens.

    Args:
        tokens: Token ids.

    Returns:
        The entropy in nats per token.
    """
    counts = torch.bincount(tokens.flatten()).double()
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * frequencies.log()).sum())
