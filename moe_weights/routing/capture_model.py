"""How is a transformers model loaded and made to generate, so that every token is routed once?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_weights.errors import BackendUnavailableError, CheckpointError, UsageError
from moe_weights.live_models import (
    byte_tokens,
    first_line,
    import_framework,
    load_network,
    load_tokenizer,
    use_plain_experts,
)

_PURPOSE = "capturing"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaptureModel:
    """A model, ready to generate.

    Attributes:
        network: The model, in evaluation mode.
        tokenizer: As transformers gives it; None when the folder has none.
        versions: Package name → version, of what runs it.
        synchronize: Waits for its device; None on a CPU.
    """

    network: Any
    tokenizer: Any
    versions: dict[str, str]
    synchronize: Callable[[], None] | None = None

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a prompt; without a tokenizer its bytes, modulo the vocabulary.

        Raises:
            UsageError: there are none.
        """
        if self.tokenizer is None:
            size = int(self.network.get_input_embeddings().weight.shape[0])
            ids = list(byte_tokens(text, size))
        else:
            ids = [int(token_id) for token_id in self.tokenizer(text)["input_ids"]]
        if not ids:
            raise UsageError("the prompt has no tokens; give a prompt that is not empty")
        return ids

    def to_text(self, token_id: int) -> str:
        """Return one token, decoded."""
        text: str = self.tokenizer.decode([token_id])
        return text


def load_capture_model(model_path: Path, *, device: str = "cpu") -> CaptureModel:
    """Load a model folder with transformers, in the dtype that it was saved in.

    Args:
        model_path: Folder with config.json and weights; nothing is downloaded, and code that lies
            in it is not run.
        device: As PyTorch calls it: cpu, cuda, mps.

    Raises:
        BackendUnavailableError: torch or transformers is not installed, or the device is not there.
        CheckpointError: it cannot be loaded, or weights of it are missing.
    """
    torch, transformers = _libraries()
    try:
        has_config = (model_path / "config.json").is_file()
    except OSError as error:
        raise CheckpointError(f"{model_path}: {error.strerror or error}") from error
    if not has_config:
        raise CheckpointError(
            f"{model_path} has no config.json; give the folder of a model as transformers saves it"
        )
    network, _loading = load_network(transformers, model_path)
    use_plain_experts(network, device)
    try:
        network = network.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise BackendUnavailableError(
            f"device {device!r} cannot be used: {first_line(error)}; use cpu"
        ) from error
    kind = device.partition(":")[0]
    return CaptureModel(
        network=network,
        tokenizer=load_tokenizer(model_path, _PURPOSE),
        versions={"torch": str(torch.__version__), "transformers": str(transformers.__version__)},
        synchronize=getattr(torch, kind).synchronize if kind in {"cuda", "mps"} else None,
    )


def generate_routed(
    model: CaptureModel,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> list[int]:
    """Generate, and feed every generated token back, also the last one.

    Generation goes on for one pass after its last token, and what that pass samples is dropped:
    so the last token is routed as all others are.

    Args:
        model: Batch of one.
        prompt_ids: Token ids of the prompt.
        max_new_tokens: Most tokens to generate; 0 routes the prompt alone.
        temperature: 0 takes the most probable token; above, tokens are drawn.
        seed: Seeds PyTorch; None leaves it as it is.

    Returns:
        Ids of the generated tokens, at most `max_new_tokens`, up to the first end token.
    """
    torch, transformers = _libraries()
    if seed is not None:
        torch.manual_seed(seed)
    network = model.network
    stated_ends = network.generation_config.eos_token_id
    ends = _end_ids(stated_ends)
    n_prompt = len(prompt_ids)

    def is_done(input_ids: Any, _scores: Any, **_keywords: Any) -> Any:
        row = input_ids[0].tolist()
        done = len(row) >= n_prompt + 2 and row[-2] in ends  # one pass after an end token
        return torch.tensor([done], device=input_ids.device)

    batch = torch.tensor([list(prompt_ids)], device=network.device)
    drawing = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens + 1,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
        **({"do_sample": False} | drawing),
    )
    network.generation_config.eos_token_id = None  # `generate` fills in what the config leaves out
    try:
        with torch.no_grad():
            output = network.generate(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                generation_config=config,
                stopping_criteria=transformers.StoppingCriteriaList([is_done]),
            )
    finally:
        network.generation_config.eos_token_id = stated_ends
    generated = [int(token_id) for token_id in output[0].tolist()[n_prompt:]]
    return generated[:-1]


def _end_ids(eos_token_id: object) -> set[int]:
    ids = eos_token_id if isinstance(eos_token_id, list | tuple) else [eos_token_id]
    return {int(value) for value in ids if isinstance(value, int)}


def _libraries() -> tuple[Any, Any]:
    return import_framework("torch", _PURPOSE), import_framework("transformers", _PURPOSE)
