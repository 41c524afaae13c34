r"""Can a pattern or a word tell one id in a tensor name from another?

`layers\.(\d+)\.` cannot: what it does with layer 3 it does with layer 60. `layers\.[0-5]\.` can.
Ids are whole segments of digits behind a dot (`checkpoint.name_ids`); `w1` holds none.

A pattern counts as blind when nothing in it can begin or end within an id:

1. What takes digits among others (`\d`, `\w`, `.`, `[0-9]`, `[^.]`) is repeated with `*` or `+`,
   and behind it stands something without digits that cannot be left out, or the end.
2. A digit that is spelled out follows a letter or `_`, so it belongs to a word such as `w1`.

Every way to match one name is then a way to match all names that are called alike, in the same
order of preference, and it captures the same segments. Patterns with other constructs (look-around,
references, inline flags) count as seeing: the answer may err to that side only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from moe_weights.config.preset import Preset
from moe_weights.config.schema import AnalysisConfig

_TOKEN = re.compile(
    r"(?P<stop>\(\?:\\\.\|\$\)|\(\?:\$\|\\\.\)|\$)"
    r"|(?P<open>\(\?:|\((?!\?))"
    r"|(?P<close>\))"
    r"|(?P<bar>\||\^)"
    r"|(?P<greedy>[*+](?![?+]))"
    r"|(?P<quantifier>[*+?][?+]?|\{[0-9,]+\}[?+]?)"
    r"|(?P<many>\\d|\\w|\.|\[0-9\]|\[\^\\?\.\])"
    r"|(?P<letter>[A-Za-z_])"
    r"|(?P<text>\\[.\-/:]|[:/-]|\[(?:[A-Za-z]-[A-Za-z]|[A-Za-z_.])+\])"
    r"|(?P<digit>[0-9])"
)
_FLAGS = re.UNICODE | re.IGNORECASE
_LONE_DIGIT = re.compile(r"(?<![A-Za-z_0-9])[0-9]")


def is_blind_config(config: AnalysisConfig, preset: Preset | None) -> bool:
    """Tell whether nothing that a config and a preset look for in names tells ids apart."""
    parsing = config.parsing
    rules = (*config.extract_rules, *(preset.rules if preset else ()))
    lookalikes = (*parsing.lookalikes, *(preset.lookalikes if preset else ()))
    patterns = [
        parsing.layer_pattern,
        parsing.expert_pattern,
        *(rule.pattern for rule in rules if rule.enabled),
        *(lookalike.pattern for lookalike in lookalikes),
    ]
    words = (
        *parsing.expert_keywords,
        *parsing.shared_expert_keywords,
        *(word for aliases in parsing.proj_aliases.values() for word in aliases),
    )
    return all(map(is_blind_pattern, patterns)) and all(map(is_blind_word, words))


class _Token(NamedTuple):
    kind: str
    text: str


_END = _Token("end", "")


def is_blind_pattern(pattern: re.Pattern[str]) -> bool:
    """Tell whether `match` and `search` do the same with all names that are called alike."""
    tokens = _tokens(pattern.pattern)
    if tokens is None or pattern.flags & ~_FLAGS:
        return False
    for position, token in enumerate(tokens):
        if token.kind == "many" and not _takes_whole_ids(tokens, position):
            return False
        if token.kind == "digit" and tokens[position - 1].kind not in {"letter", "digit"}:
            return False
    return True


def is_blind_word(word: str) -> bool:
    """Tell whether a word that is looked for in names occurs in all that are called alike."""
    return _LONE_DIGIT.search(word) is None


def _tokens(text: str) -> list[_Token] | None:
    """Return the tokens and an end token; None where a construct is not known."""
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            return None
        tokens.append(_Token(str(found.lastgroup), found.group()))
        position = found.end()
    return [*tokens, _END]


def _takes_whole_ids(tokens: list[_Token], position: int) -> bool:
    if tokens[position + 1].kind != "greedy":
        return False
    position += 2
    while tokens[position].kind == "close":
        position += 1
    follower, behind = tokens[position], tokens[min(position + 1, len(tokens) - 1)]
    if follower.kind in {"letter", "text", "stop"}:
        return behind.kind != "quantifier" and behind.text != "*"
    return follower is _END
