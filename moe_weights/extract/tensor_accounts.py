"""Which entry of the ledger does a tensor get, and which rule knows a tensor that it cannot take?

A rule that fits a name knows layer, projection and stack also where shape or encoding forbid that
it takes the tensor. A scale that lost its weights is known by the name that they would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.account import Account, Fate
from moe_weights.extract.names import NameReader, owner_names
from moe_weights.extract.projections import ProjectionAliases
from moe_weights.extract.rules import RuleApplier, RuleMatch, names_experts
from moe_weights.extract.tensor_roles import MAIN_STACK

# Finds the rule whose pattern fits a name, whatever the tensor's form.
RuleByName = Callable[[str], RuleMatch | None]


class TensorAccounts:
    """Makes entries of the ledger."""

    def __init__(
        self,
        names: NameReader,
        aliases: ProjectionAliases,
        applier: RuleApplier,
        finders: Sequence[RuleByName],
    ) -> None:
        """Keep what reads names.

        Args:
            names: Reads ids out of names.
            aliases: Knows projection words.
            applier: Reads ids out of what a rule captured.
            finders: Those of the user's rules, of the preset and of the template, in this order.
        """
        self._names = names
        self._aliases = aliases
        self._applier = applier
        self._finders = tuple(finders)

    def owner_match(self, name: str) -> RuleMatch | None:
        """Return the rule that takes the experts' weights to which a side tensor belongs."""
        for owner in owner_names(name):
            match = self._find(owner)
            if names_experts(match):
                return match
        return None

    def entry(self, tensor: StoredTensor, fate: Fate, detail: str) -> Account:
        """Return the entry of a tensor.

        Args:
            tensor: The tensor.
            fate: What became of it.
            detail: Reason or kind; "" for measured ones.
        """
        stack, layer, proj, is_routed = MAIN_STACK, -1, "", True
        if fate is Fate.REFUSED or fate is Fate.UNMATCHED:
            # Measured tensors are accounted matrix by matrix; only the others need the name.
            match = self._find(tensor.name) or self.owner_match(tensor.name)
            identity = (
                self._names.identity(tensor.name)
                if match is None
                else self._applier.identify(match, tensor)
            )
            stack, layer = identity.stack, -1 if identity.layer is None else identity.layer
            proj = self._proj(match, tensor.name)
            is_routed = not identity.is_shared_expert
        elif fate is Fate.LOOKALIKE:
            is_routed = not self._names.is_shared_expert(tensor.name)
        return Account(
            tensor=tensor.header.name,
            file=tensor.header.file,
            nbytes=tensor.nbytes,
            fate=fate,
            detail=detail,
            stack=stack,
            layer=layer,
            proj=proj,
            is_routed=is_routed,
        )

    def _find(self, name: str) -> RuleMatch | None:
        found = (match for finder in self._finders if (match := finder(name)) is not None)
        return next(found, None)

    def _proj(self, match: RuleMatch | None, name: str) -> str:
        """Return the projection; "" when unknown or when there are several."""
        token = None
        if match is not None:
            if match.rule.packed_split is not None or match.rule.proj is not None:
                return match.rule.proj or ""
            token = match.text(match.rule.proj_group)
        if match is None or token is None:
            return self._aliases.infer(name) or ""
        return match.rule.proj_map.get(token) or self._aliases.resolve_token(token) or token
