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
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tiny_olmoe_text import (
    CONTEXT,
    encode,
    held_out_windows,
    read_splits,
    train_tokenizer,
    unigram_entropy,
)
from torch import Tensor
from torch.nn import functional
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

BATCH = 8
PEAK_LEARNING_RATE = 6e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
GRADIENT_CLIP = 1.0
EVALUATE_EVERY = 200
MAX_SHARD_SIZE = "2MB"
PROMPT = "The following function returns"


@dataclass(frozen=True)
class CurveRow:
    """One row of the loss curve; losses are mean nats per token, without the router loss."""

    step: int
    train_loss: float | None
    held_out_loss: float


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
