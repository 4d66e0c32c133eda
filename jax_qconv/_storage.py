"""How many channels the tensors of a network are stored with.

`prepack` pads to what suits dense kernels of several taps, for it sees one layer. Where a whole
network is known, tensors that only 1x1 and depthwise convolutions touch are padded less: memory is
these layers' limit, and padded channels are read and written like others. What becomes int8 between
layers is padded by the rule, and cut where a layer reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jax_qconv._conv_node import ConvNode
from jax_qconv._fuse import Node
from jax_qconv._op_nodes import OpNode
from jax_qconv._spec import padded_channels

STEP = 16
"""Channels are stored in multiples of it: what one load of a kernel takes."""

WASTE = 1 / 6
"""Up to this share of padded channels, what the rule stores was as fast (H200, EfficientNet)."""


def fine_values(nodes: Sequence[Node]) -> frozenset[int]:
    """The values of a network that may be padded less."""
    parent: dict[int, int] = {}

    def root(value: int) -> int:
        while parent.setdefault(value, value) != value:
            value = parent[value]
        return value

    coarse: set[int] = set()
    for node in nodes:
        if not isinstance(node, ConvNode | OpNode):
            continue
        joined = [*node.inputs, node.out]
        if isinstance(node, ConvNode):
            assert node.info.weight_shape is not None
            *kernel, per_group, k = node.info.weight_shape
            depthwise = per_group == 1 and k == node.info.groups
            if not depthwise and (math.prod(kernel) > 1 or node.info.groups > 1):
                coarse.update(joined)
            if not depthwise:  # its output has channels of its own
                root(joined.pop(0))
        for value in joined[1:]:
            parent[root(value)] = root(joined[0])
    roots = {root(value) for value in coarse}
    return frozenset(value for value in parent if root(value) not in roots)


def pad_to(node: ConvNode, fine: frozenset[int]) -> tuple[int | None, int | None]:
    """The argument of `prepack` for a layer of a network with such `fine_values`."""
    assert node.info.weight_shape is not None
    *_, per_group, k = node.info.weight_shape
    c = per_group * node.info.groups
    return (
        fine_channels(c) if node.x in fine else None,
        fine_channels(k) if node.out in fine else None,
    )


def fine_channels(channels: int) -> int | None:
    """How many are stored for ``channels`` of fine values; None for as many as by the rule."""
    wasted = padded_channels(channels) / channels - 1
    return math.ceil(channels / STEP) * STEP if wasted > WASTE and channels > 2 * STEP else None
