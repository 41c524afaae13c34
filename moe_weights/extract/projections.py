"""Which projection a name or a captured token means, and what could not be resolved."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

ProjectionContext = Literal["packed_split", "proj_group"]
ProjectionAction = Literal["kept_raw", "dropped_strict"]

_SUGGESTION_CUTOFF = 0.6  # difflib's own default: below it matches are noise


@dataclass(frozen=True, slots=True, kw_only=True)
class UnresolvedProjection:
    """One decision about a projection token that no alias explains.

    Attributes:
        context: Which part of a rule gave the token.
        rule_name: The rule.
        raw_proj: The token as captured or configured.
        resolved_proj: The name used in the tables; "" when the tensor was dropped.
        action: What was done.
        file: Shard, relative to the model directory.
        source_tensor: Stored tensor.
        derived_tensor: Analysed matrix, or the stored tensor's name when it was dropped.
    """

    context: ProjectionContext
    rule_name: str
    raw_proj: str
    resolved_proj: str
    action: ProjectionAction
    file: str
    source_tensor: str
    derived_tensor: str


@dataclass(frozen=True, slots=True)
class ProjectionAliases:
    """Canonical projection names and the words that mean them.

    Attributes:
        aliases: Canonical name to its alias words, in order of preference.
    """

    aliases: Mapping[str, Sequence[str]]
    _patterns: tuple[tuple[str, str, re.Pattern[str] | None], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the aliases once."""
        patterns = tuple(
            (canonical, alias.lower(), _alias_pattern(alias.lower()))
            for canonical, words in self.aliases.items()
            for alias in words
        )
        object.__setattr__(self, "_patterns", patterns)

    def infer(self, text: str) -> str | None:
        """Return the first canonical name of which an alias occurs in `text`, or None.

        An alias that starts and ends with a dot matches anywhere; any other only where it touches
        no letter, digit or underscore, so `gate_up_proj` means neither gate nor up.
        """
        return next(iter(self._hits(text.lower())), None)

    def infer_all(self, text: str) -> tuple[str, ...]:
        """Return every canonical name that `text` could mean, first hit first, without repeats."""
        return tuple(dict.fromkeys(self._hits(text.lower())))

    def is_dotted_hit(self, text: str) -> bool:
        """Only a dotted alias such as `.gate.` hits, as it also would for a router."""
        lowered = text.lower()
        return not any(
            pattern.search(lowered) for _canonical, _alias, pattern in self._patterns if pattern
        )

    def resolve_token(self, token: str) -> str | None:
        """Return what a captured token means: a canonical name in any case, or an alias of one."""
        lowered = token.lower()
        for canonical in self.aliases:
            if canonical.lower() == lowered:
                return canonical
        return self.infer(token)

    def suggest(self, token: str) -> tuple[str, str]:
        """Return (canonical name, closest known word) for an unknown token, or empty strings."""
        words: dict[str, str] = {}
        for canonical, aliases in self.aliases.items():
            for word in (canonical, *aliases):
                words.setdefault(word.lower(), canonical)
        close = difflib.get_close_matches(
            token.lower(), list(words), n=1, cutoff=_SUGGESTION_CUTOFF
        )
        return (words[close[0]], close[0]) if close else ("", "")

    def _hits(self, lowered: str) -> list[str]:
        return [
            canonical
            for canonical, alias, pattern in self._patterns
            if (pattern.search(lowered) if pattern else alias in lowered)
        ]


def _alias_pattern(alias: str) -> re.Pattern[str] | None:
    if len(alias) > 1 and alias.startswith(".") and alias.endswith("."):
        return None
    return re.compile(rf"(?<![a-z0-9_]){re.escape(alias)}(?![a-z0-9_])")
