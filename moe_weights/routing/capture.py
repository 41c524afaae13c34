"""How is the routing of a live transformers model recorded while it generates?

Forward hooks see every pass; after each pass, its tokens are checked and appended to a working
bundle, so that a process that dies loses at most the pass in flight. Prompt tokens come first, in
the prefill pass or passes; then each generated token, when it is fed back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing.capture_blocks import MoeBlock, find_moe_blocks
from moe_weights.routing.capture_layers import LayerReader
from moe_weights.routing.capture_readings import is_tensor, to_array
from moe_weights.routing.routed_layers import RoutedLayerInput, build_routed_token_event
from moe_weights.routing.working_bundle import WorkingBundle

_LOG = logging.getLogger(__name__)


class RoutingCapture:
    """Records what the routers of a model do, while it is in use as a context manager.

    ```python
    with create_working_bundle(root, manifest) as bundle, RoutingCapture(model, bundle):
        model.generate(**inputs, max_new_tokens=8)
        bundle.promote()
    ```

    Every token that is fed to the model becomes one event, once. The last token that `generate`
    samples is not fed back and has none; `capture_generation` feeds it.

    Attributes:
        blocks: The MoE blocks, by decoder layer.
        fed_ids: Token ids seen so far, None where the model was given embeddings.
    """

    def __init__(
        self,
        model: Any,
        bundle: WorkingBundle,
        *,
        n_prompt_tokens: int | None = None,
        to_text: Callable[[int], str] | None = None,
        synchronize: Callable[[], None] | None = None,
    ) -> None:
        """Find the MoE blocks; hooks are set on entering.

        Args:
            model: A causal language model of transformers, in evaluation mode; batch of one.
            bundle: Takes the events; of `bundle_version="v0.2.0"`.
            n_prompt_tokens: Length of the prompt, when it comes in more than one pass; None takes
                the first pass as the prompt.
            to_text: Decodes one token id; None leaves `token_text` as not captured.
            synchronize: Waits for the device, so that times are those of the pass; None where the
                device is the CPU.

        Raises:
            NotMoeModelError: the model has no MoE blocks.
        """
        self.blocks: list[MoeBlock] = find_moe_blocks(model)
        self.fed_ids: list[int | None] = []
        self._model = model
        self._bundle = bundle
        self._n_prompt_tokens = n_prompt_tokens
        self._to_text = to_text
        self._synchronize = synchronize or (lambda: None)
        self._readers: list[LayerReader] = []
        self._handles: list[Any] = []
        self._started_at = time.perf_counter()
        self._pass_start_ms = 0.0
        self._silent: set[str] = set()

    def __enter__(self) -> RoutingCapture:
        """Set the hooks."""
        try:
            for block in self.blocks:
                self._readers.append(LayerReader(block))
            for register, hook in (
                (self._model.register_forward_pre_hook, self._start_pass),
                (self._model.register_forward_hook, self._end_pass),
            ):
                self._handles.append(register(hook, with_kwargs=True))
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Take the hooks away."""
        self._remove_hooks()

    def describe(self) -> dict[str, Any]:
        """Return `capture_config` of a manifest: what is observed, and which layer it is."""
        return describe_capture(self._model, self.blocks)

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        for reader in self._readers:
            reader.remove()
        self._handles.clear()
        self._readers.clear()

    def _now_ms(self) -> float:
        self._synchronize()
        return (time.perf_counter() - self._started_at) * 1000.0

    def _start_pass(self, _model: Any, _arguments: Any, _keywords: Any) -> None:
        for reader in self._readers:
            reader.clear()
        self._pass_start_ms = self._now_ms()

    def _end_pass(self, _model: Any, arguments: Any, keywords: Any, _output: Any) -> None:
        end_ms = self._now_ms()
        ids, n_tokens = _fed_tokens(arguments, keywords)
        first = self._first_position(keywords, ids, n_tokens)
        n_known = len(self.fed_ids) - first
        layers: list[list[RoutedLayerInput]] = []
        for reader in self._readers:
            read = reader.read_pass(n_tokens)
            if read is not None:
                layers.append(read)
            elif reader.block.path not in self._silent:
                self._silent.add(reader.block.path)
                _LOG.warning("%s: nothing of its router could be read", reader.block.path)
        if not layers:
            raise InvalidDataError(
                "no MoE block of the model ran, or none could be read; "
                f"blocks are {', '.join(block.path for block in self.blocks)}"
            )
        n_prompt = self._n_prompt_tokens
        if n_prompt is None:
            n_prompt = self._n_prompt_tokens = n_tokens
        for row in range(n_known, n_tokens):
            token_id = None if ids is None else ids[row]
            index = first + row
            text = None if token_id is None or self._to_text is None else self._to_text(token_id)
            self._bundle.append(
                build_routed_token_event(
                    run_id=self._bundle.manifest["run_id"],
                    token_index=index,
                    phase="prefill" if index < n_prompt else "decode",
                    layers=[rows[row] for rows in layers],
                    token_id=token_id,
                    token_text=text,
                    context_length=index,
                    pass_start_ms=self._pass_start_ms,
                    pass_end_ms=end_ms,
                )
            )
            self.fed_ids.append(token_id)
        for reader in self._readers:
            reader.clear()

    def _first_position(self, keywords: Any, ids: list[int] | None, n_tokens: int) -> int:
        """Return the position of a pass's first token, and refuse what is not one growing text."""
        seen = len(self.fed_ids)
        first = _stated_position(keywords, n_tokens)
        if first is None:
            first = seen
        again = self.fed_ids[first : first + n_tokens]
        if (
            not 0 <= first <= seen
            or first + n_tokens <= seen
            or (again and ids is not None and again != ids[: len(again)])
        ):
            raise UsageError(
                f"the model was fed positions {first}..{first + n_tokens - 1} after {seen} tokens; "
                "a capture follows one text that grows: use one bundle per text, and no assisted "
                "or beam search"
            )
        return first


def describe_capture(model: Any, blocks: list[MoeBlock]) -> dict[str, Any]:
    """Return what is observed of a model: its class, dtype, and the layer of each MoE ordinal."""
    return {
        "method": "forward hooks",
        "model_class": type(model).__name__,
        "model_dtype": str(getattr(model, "dtype", "")).removeprefix("torch.") or None,
        "moe_layers": [
            {
                "moe_ordinal": ordinal,
                "layer_index": block.layer,
                "module": block.path,
                "router_class": type(block.router).__name__,
            }
            for ordinal, block in enumerate(blocks)
        ],
    }


def _fed_tokens(arguments: Any, keywords: Any) -> tuple[list[int] | None, int]:
    """Return (token ids or None, how many) of a call of the model.

    Raises:
        UsageError: a batch of more than one, padding, or neither ids nor embeddings.
    """
    ids = keywords.get("input_ids")
    if ids is None and arguments:
        ids = arguments[0]
    fed = ids if ids is not None else keywords.get("inputs_embeds")
    if not is_tensor(fed):
        raise UsageError("the model was called without input_ids and without inputs_embeds")
    if int(fed.shape[0]) != 1:
        raise UsageError(
            f"the model was called with a batch of {int(fed.shape[0])}; capture one text at a time"
        )
    mask = keywords.get("attention_mask")
    if is_tensor(mask) and len(mask.shape) == 2 and not to_array(mask).all():
        raise UsageError("the attention mask hides tokens; capture a prompt without padding")
    n_tokens = int(fed.shape[1])
    return (None if ids is None else [int(value) for value in to_array(ids)[0]]), n_tokens


def _stated_position(keywords: Any, n_tokens: int) -> int | None:
    """Return the position of the first token as the call tells it; None when it does not."""
    mask = keywords.get("attention_mask")
    if is_tensor(mask) and len(mask.shape) == 2:
        return int(mask.shape[1]) - n_tokens
    positions = keywords.get("position_ids")
    if is_tensor(positions) and len(positions.shape) == 2:
        return int(to_array(positions)[0, 0])
    return None
