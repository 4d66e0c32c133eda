"""What a rule can tell the layers of a network by."""

from __future__ import annotations

import dataclasses

from jax_qconv._spec import Ints


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """A layer, or another operation that makes values, as `Rule.where` sees it.

    Attributes:
        name: path of its weights among the parameters, such as ``"params/Conv_0"``; of other
            operations where they were traced.
        kind: ``"conv"``, ``"linear"``, or what JAX calls the operation, such as ``"add"``;
            ``"input"`` for what goes into the network.
        weight_shape: ``(R, S, C / groups, K)`` or ``(C, K)``; None of other operations.
        groups: of a convolution.
        first: whether no other layer comes before it.
        last: whether no other layer comes after it.
    """

    name: str
    kind: str
    weight_shape: Ints | None = None
    groups: int = 1
    first: bool = False
    last: bool = False
