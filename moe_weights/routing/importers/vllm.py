"""What did vLLM return of a request's routing, and which token is each row?

With `enable_return_routed_experts`, a completion carries `routed_experts`: integers [tokens,
layers, k]. It covers prompt and completion, all but the last sampled token, which is never fed
back; or the completion alone, with `prompt_routed_experts` at the request. Over HTTP, arrays are
nested lists or base64 of a .npy file.

Source: vllm/outputs.py (CompletionOutput.routed_experts) of vllm-project/vllm, 0.21.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing.importers.recorded import Array, RecordedToken, to_choices, to_ids

_EXPERTS = "routed_experts"
_PROMPT_EXPERTS = "prompt_routed_experts"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VllmRecord:
    """The routing of one request.

    Attributes:
        chosen: (tokens, layers, k) int64.
        n_prompt: How many of the tokens are the prompt's.
        token_ids: As far as the record has them, in order; empty without.
        prompt_text: "" when the record has none.
    """

    chosen: Array
    n_prompt: int
    token_ids: tuple[int, ...] = ()
    prompt_text: str = ""

    def tokens(self) -> Iterator[RecordedToken]:
        """Give the tokens in order."""
        for place, chosen in enumerate(self.chosen):
            yield RecordedToken(
                phase="prefill" if place < self.n_prompt else "decode",
                chosen=chosen,
                token_id=self.token_ids[place] if self.token_ids else None,
            )


def read_vllm_record(
    record: Any, *, request: int | None = None, n_prompt: int | None = None
) -> VllmRecord:
    """Read what `read_record` returned.

    Args:
        record: An array, a mapping of arrays, a RequestOutput or response as JSON, or a list.
        request: Which of several requests.
        n_prompt: Length of the prompt; needed where the record has no token ids.

    Raises:
        UsageError: several requests, or no length of the prompt.
        InvalidDataError: no routing, or numbers of tokens that contradict one another.
    """
    if isinstance(record, list) and record and isinstance(record[0], Mapping):
        record = _one_of(record, request, "requests")
    elif request:
        raise UsageError(f"the record is that of one request and has no requests[{request}]")
    if not isinstance(record, Mapping):
        return _to_record(to_choices(record, _EXPERTS), None, n_prompt, [], [], "")
    completion: Mapping[str, Any] = record
    for name in ("outputs", "choices"):
        if isinstance(record.get(name), list):
            completion = _one_of(record[name], None, name)
    values = completion.get(_EXPERTS)
    if values is None and len(record) == 1 and not isinstance(next(iter(record.values())), Mapping):
        values = next(iter(record.values()))  # an .npz of one unnamed array
    if values is None:
        raise InvalidDataError(
            f"the record has no {_EXPERTS}; start vLLM with enable_return_routed_experts"
        )
    prompt = record.get(_PROMPT_EXPERTS)
    text = record.get("prompt")
    return _to_record(
        to_choices(_decoded(values, _EXPERTS), _EXPERTS),
        None if prompt is None else to_choices(_decoded(prompt, _PROMPT_EXPERTS), _PROMPT_EXPERTS),
        n_prompt,
        # A response of the completions API has them in each choice.
        _ids(record, "prompt_token_ids") or _ids(completion, "prompt_token_ids"),
        _ids(completion, "token_ids"),
        text if isinstance(text, str) else "",
    )


def _to_record(
    chosen: Array,
    prompt: Array | None,
    n_prompt: int | None,
    prompt_ids: list[int],
    completion_ids: list[int],
    text: str,
) -> VllmRecord:
    if prompt is not None:
        if prompt.shape[1:] != chosen.shape[1:]:
            raise InvalidDataError(
                f"{_PROMPT_EXPERTS} has layers and k of {list(prompt.shape[1:])}, {_EXPERTS} of "
                f"{list(chosen.shape[1:])}"
            )
        if n_prompt not in {None, len(prompt)}:
            raise InvalidDataError(
                f"{_PROMPT_EXPERTS} has {len(prompt)} rows, the prompt is said to have {n_prompt}; "
                "leave --prompt-tokens out"
            )
        n_prompt = len(prompt)
        chosen = np.concatenate([prompt, chosen])
    known = n_prompt if n_prompt is not None else len(prompt_ids) or None
    if known is None:
        raise UsageError(
            "the record does not say how many tokens the prompt has; give it with --prompt-tokens"
        )
    if prompt_ids and len(prompt_ids) != known:
        raise InvalidDataError(f"prompt_token_ids has {len(prompt_ids)} tokens, the prompt {known}")
    ids = [*prompt_ids, *completion_ids] if prompt_ids and completion_ids else []
    if ids and len(chosen) not in {len(ids), len(ids) - 1}:
        raise InvalidDataError(
            f"{_EXPERTS} has {len(chosen)} rows for {len(ids)} tokens; expected one for each, or "
            "for all but the last"
        )
    if known > len(chosen):
        raise InvalidDataError(f"the prompt has {known} tokens, {_EXPERTS} {len(chosen)} rows")
    return VllmRecord(
        chosen=chosen, n_prompt=known, token_ids=tuple(ids[: len(chosen)]), prompt_text=text
    )


def _one_of(items: list[Any], number: int | None, what: str) -> Mapping[str, Any]:
    if number is None and len(items) != 1:
        how = "; choose one with --request" if what == "requests" else "; keep one of them"
        raise UsageError(f"the record has {len(items)} {what}, a bundle holds one text{how}")
    place = number or 0
    if not 0 <= place < len(items) or not isinstance(items[place], Mapping):
        raise UsageError(f"the record has no {what}[{place}]")
    item: Mapping[str, Any] = items[place]
    return item


def _decoded(values: object, what: str) -> object:
    if not isinstance(values, str):
        return values
    try:
        encoded = base64.b64decode(values, validate=True)
        # Not np.load: it would open archives too. A header may claim any shape.
        return np.lib.format.read_array(io.BytesIO(encoded), allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError, MemoryError) as error:
        raise InvalidDataError(f"{what} is text and no base64 of a .npy file: {error}") from error


def _ids(record: Mapping[str, Any], name: str) -> list[int]:
    values = record.get(name)
    return [] if values is None else to_ids(values, name)
