"""Train a tiny OLMoE checkpoint on the text that ships with Python itself.

The result is a real, trained Mixture-of-Experts language model that is small enough to live in
a repository: three layers of sixteen experts, four of them active for each token. The training
text is the interpreter's own help topics (``pydoc_data.topics``) and the docstrings of the
standard library, so nothing has to be downloaded.

Needs ``torch``, ``transformers`` and ``tokenizers``. Typical use::

    python examples/train_tiny_olmoe.py --out examples/tiny_olmoe
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import platform
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn import functional
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
VOCAB_SIZE = 1800
CONTEXT = 256
BATCH = 8
HELD_OUT_ONE_IN = 20
PEAK_LEARNING_RATE = 6e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
GRADIENT_CLIP = 1.0
EVALUATE_EVERY = 200
MAX_SHARD_SIZE = "2MB"
PROMPT = "The following function returns"

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


@dataclass(frozen=True)
class CurveRow:
    """One row of the loss curve; losses are mean nats per token, without the router loss."""

    step: int
    train_loss: float | None
    held_out_loss: float


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


@torch.no_grad()
def evaluate(model: OlmoeForCausalLM, windows: Tensor) -> tuple[float, list[list[float]]]:
    """Measure the next-token loss and how much each expert is used.

    Args:
        model: The model.
        windows: Token ids of shape ``(windows, CONTEXT + 1)``.

    Returns:
        The mean loss in nats per token and, for each layer, the share of the routed slots that
        went to each expert (each layer sums to one).
    """
    model.eval()
    config = model.config
    usage = torch.zeros(config.num_hidden_layers, config.num_experts, dtype=torch.float64)
    total = 0.0
    for batch in windows.split(BATCH):
        output = model(batch[:, :-1], output_router_logits=True, use_cache=False)
        logits = output.logits.flatten(0, 1).float()
        total += float(functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"))
        for layer, router_logits in enumerate(output.router_logits):
            chosen = router_logits.topk(config.num_experts_per_tok).indices.flatten()
            usage[layer] += torch.bincount(chosen, minlength=config.num_experts)
    model.train()
    usage /= usage.sum(dim=1, keepdim=True)
    return total / windows[:, 1:].numel(), usage.tolist()


def router_loss(model: OlmoeForCausalLM, router_logits: tuple[Tensor, ...]) -> Tensor:
    """Return the load-balancing loss, averaged over layers.

    The loss is taken for each layer by itself, so that an expert cannot make up for being idle
    in one layer by being busy in another.

    Args:
        model: The model.
        router_logits: The router logits of each layer.

    Returns:
        A scalar tensor.
    """
    config = model.config
    losses = [
        load_balancing_loss_func((logits,), config.num_experts, config.num_experts_per_tok)
        for logits in router_logits
    ]
    return torch.stack(losses).mean()


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate: linear warm-up, then a cosine down to a twentieth.

    Args:
        step: The step, counted from zero.
        steps: The number of steps in all.

    Returns:
        The learning rate of that step.
    """
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return PEAK_LEARNING_RATE * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return PEAK_LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def build_model(tokenizer: PreTrainedTokenizerFast) -> OlmoeForCausalLM:
    """Create the untrained model.

    Args:
        tokenizer: The tokenizer, for the vocabulary size and the special tokens.

    Returns:
        The model, in float32.
    """
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_experts=16,
        num_experts_per_tok=4,
        max_position_embeddings=2 * CONTEXT,
        initializer_range=0.06,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return OlmoeForCausalLM(config).float()


def train(
    model: OlmoeForCausalLM, stream: Tensor, windows: Tensor, steps: int, seed: int
) -> list[CurveRow]:
    """Train the model in place.

    Args:
        model: The model.
        stream: Token ids of the training split.
        windows: Windows of the held-out split.
        steps: Number of optimizer steps.
        seed: Seed for drawing batches.

    Returns:
        The loss curve. The train loss of a row is the mean over the steps since the row before.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95))
    offsets = torch.arange(CONTEXT + 1)
    curve = [CurveRow(0, None, evaluate(model, windows)[0])]
    print(f"{'step':>6} {'train':>8} {'held out':>9}")
    print(f"{0:>6} {'':>8} {curve[0].held_out_loss:>9.4f}")
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        starts = torch.randint(len(stream) - CONTEXT, (BATCH, 1), generator=generator)
        batch = stream[starts + offsets]
        output = model(batch[:, :-1], output_router_logits=True, use_cache=False)
        loss = functional.cross_entropy(output.logits.flatten(0, 1), batch[:, 1:].flatten())
        recent.append(float(loss.detach()))
        balance = router_loss(model, output.router_logits)
        optimizer.zero_grad(set_to_none=True)
        (loss + model.config.router_aux_loss_coef * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        done = step + 1
        if done % EVALUATE_EVERY == 0 or done == steps:
            row = CurveRow(done, sum(recent) / len(recent), evaluate(model, windows)[0])
            recent.clear()
            curve.append(row)
            print(f"{row.step:>6} {row.train_loss:>8.4f} {row.held_out_loss:>9.4f}", flush=True)
    return curve


def complete(model: OlmoeForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """Continue a prompt by 40 tokens, always taking the likeliest one.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        prompt: The text to continue.

    Returns:
        The prompt and its continuation.
    """
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=40,
        do_sample=False,
        repetition_penalty=1.1,
    )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The arguments.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    default_out = Path(__file__).resolve().parent / "tiny_olmoe"
    parser.add_argument("--out", type=Path, default=default_out, help="folder to write")
    parser.add_argument("--steps", type=int, default=1400, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    return parser.parse_args()


def main() -> None:
    """Train, save, load again and write the training log."""
    arguments = parse_arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(arguments.seed)

    train_split, held_out_split = read_splits()
    tokenizer = train_tokenizer(train_split.documents)
    train_stream = encode(tokenizer, train_split)
    held_out_stream = encode(tokenizer, held_out_split)
    windows = held_out_windows(held_out_stream)
    entropy = unigram_entropy(windows[:, 1:])
    model = build_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(train_stream)} training tokens")
    print(f"unigram entropy of {windows[:, 1:].numel()} held-out tokens: {entropy:.4f} nats")

    started = time.monotonic()
    curve = train(model, train_stream, windows, arguments.steps, arguments.seed)
    seconds = time.monotonic() - started
    trained_loss, _ = evaluate(model, windows)

    model.to(torch.bfloat16).save_pretrained(arguments.out, max_shard_size=MAX_SHARD_SIZE)
    tokenizer.save_pretrained(arguments.out)
    saved = OlmoeForCausalLM.from_pretrained(arguments.out, dtype=torch.bfloat16)
    saved_loss, usage = evaluate(saved, windows)
    saved.eval()
    sample = complete(saved, tokenizer, PROMPT)
    print(f"held-out loss: {trained_loss:.4f} trained, {saved_loss:.4f} as saved in bfloat16")
    print(f"that is {saved_loss / entropy:.1%} of the unigram entropy; {seconds:.0f} s")
    print(sample)

    log: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seed": arguments.seed,
        "steps": arguments.steps,
        "batch": BATCH,
        "context": CONTEXT,
        "parameters": parameters,
        "text": {
            name: {
                "documents": len(split.documents),
                "characters": split.characters,
                "tokens": len(stream),
                "sha256": split.sha256,
            }
            for name, split, stream in (
                ("train", train_split, train_stream),
                ("held_out", held_out_split, held_out_stream),
            )
        },
        "held_out_scored_tokens": windows[:, 1:].numel(),
        "unigram_entropy": round(entropy, 4),
        "held_out_loss": round(trained_loss, 4),
        "held_out_loss_as_saved_bfloat16": round(saved_loss, 4),
        "curve": [
            {key: round(value, 4) if value else value for key, value in asdict(row).items()}
            for row in curve
        ],
        "expert_usage": [[round(share, 4) for share in layer] for layer in usage],
        "sample": sample,
        "seconds": round(seconds, 1),
    }
    log_path = arguments.out / "training_log.json"
    log_path.write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
