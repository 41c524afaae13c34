"""The role of every stored tensor: the column `role` of the inventory."""

from __future__ import annotations

from moe_weights.extract.account import COPY, Account, Fate
from moe_weights.extract.plan import ExtractionPlan
from moe_weights.extract.tensor_roles import TensorRole, role_by_name

_ROLE_OF_KIND = {
    "router": TensorRole.ROUTER,
    "router_bias": TensorRole.ROUTER_BIAS,
    "attention_expert": TensorRole.ATTENTION,
    "dense_mlp": TensorRole.DENSE_MLP,
    "expert_bias": TensorRole.ROUTED_EXPERT,
    "identity_expert": TensorRole.ROUTED_EXPERT,
}


# Of kinds that say nothing about what part of the model it is, names that are not router, attention
# or norm mean experts, also where they have a word for a dense block: `mlp.experts.0.down_proj`.
_KINDS_OF_ANY_PART = frozenset({COPY, "adapter"})


def _role_of_lookalike(account: Account) -> TensorRole:
    role = _ROLE_OF_KIND.get(account.detail) or role_by_name(account.tensor)
    is_of_expert = account.detail in _KINDS_OF_ANY_PART and role in {
        TensorRole.OTHER,
        TensorRole.DENSE_MLP,
    }
    if role is TensorRole.ROUTED_EXPERT or is_of_expert:
        return TensorRole.ROUTED_EXPERT if account.is_routed else TensorRole.SHARED_EXPERT
    return role


class RoleAssignment:
    """Looks roles up: from the plan where it decided, else from the name."""

    def __init__(self, plan: ExtractionPlan) -> None:
        """Take the decided roles out of the plan."""
        shared = {
            unit.source.header.name
            for unit in plan.units
            if all(matrix.is_shared_expert for matrix in unit.matrices)
        }
        self._companions = plan.companions
        self._decided: dict[str, TensorRole] = {}
        for account in plan.accounts:
            if account.fate is Fate.LOOKALIKE:
                role = _role_of_lookalike(account)
            elif account.fate is Fate.EXCLUDED or account.tensor in shared:
                role = TensorRole.SHARED_EXPERT
            elif account.fate is Fate.MEASURED or account.is_routed:
                role = TensorRole.ROUTED_EXPERT
            else:
                role = TensorRole.SHARED_EXPERT
            # Copies come last and often have the names of what they are copies of.
            self._decided.setdefault(account.tensor, role)

    def role(self, name: str) -> TensorRole:
        """Return the role of a stored tensor; a companion has that of the tensor it explains."""
        owner = self._companions.get(name, name)
        return self._decided.get(owner) or role_by_name(owner)
