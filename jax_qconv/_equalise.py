"""Cross-layer equalisation: channels of a value are scaled, so that weights of both sides fit int8.

A value whose only readers are layers, made by a layer whose activation commutes with scaling, may
be divided by a positive number for each channel: the weights that make it are divided too, and
those that read it multiplied. The numbers are those of arXiv:1906.04721, sqrt(r1 / r2) for the
ranges r1 and r2 of the weights on both sides, repeated until they settle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_qconv._conv_node import ConvNode
from jax_qconv._move_nodes import Pad
from jax_qconv._network import Network
from jax_qconv._op_nodes import MaxPool

HOMOGENEOUS = ("none", "relu", "leaky_relu", "prelu")
"""Activations with act(a * x) = a * act(x) for each positive a."""

SWEEPS = 20
"""Over all values; ranges of long chains need a few."""

Factors = Mapping[int, np.ndarray]
"""By the number of a value, what each of its channels is divided by: float32, broadcasts to it."""


def equalised(network: Network, weights: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """What the values of a network are to be divided by.

    Args:
        network: whose values.
        weights: ``[R, S, C / groups, K] or [C, K]`` of each layer, by its name.
    """
    chains = list(filter(None, (_chain(network, layer) for layer in network.layers)))
    made = {layer.name: np.abs(weights[layer.name]) for layer in network.layers}
    found: dict[int, np.ndarray] = {}
    for _ in range(SWEEPS):
        for maker, values, readers in chains:
            before = _of_outputs(made[maker.name])
            after = np.max(
                [_of_inputs(made[reader.name], len(before)) for reader in readers], axis=0
            )
            alive = (before > 0) & (after > 0)
            ratio = np.sqrt(np.where(alive, before, 1) / np.where(alive, after, 1))
            made[maker.name] = made[maker.name] / ratio
            for reader in readers:
                made[reader.name] = made[reader.name] * by_inputs(ratio, made[reader.name])
            total = ratio * found.get(maker.out, 1.0)
            found |= dict.fromkeys(values, total)
    return {
        value: _along(
            maker.placement.channel_axes[0], len(network.graph.shape(value)), found[value]
        )
        for maker, values, _ in chains
        for value in values
    }


def divided(x: Any, factors: Any) -> Any:
    """A value as it is to be quantised; ``factors`` are its own, or None."""
    return x if factors is None else x.astype(jnp.float32) / jnp.broadcast_to(factors, x.shape)


def by_inputs(factor: Any, weight: Any) -> Any:
    """A number for each input channel, to multiply the weights of a layer with.

    Args:
        factor: ``[C]``
        weight: ``[R, S, C / groups, K] or [C, K]`` of the layer that reads the channels.

    Returns:
        ``[C / groups, K]``
    """
    groups = len(factor) // weight.shape[-2]
    by_group = factor.reshape(groups, -1).T
    return by_group.repeat(weight.shape[-1] // groups, axis=1)


def _along(axis: int, rank: int, vector: np.ndarray) -> np.ndarray:
    """A vector along one of several axes, in float32."""
    return vector.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(rank)])


def _of_outputs(weight: np.ndarray) -> np.ndarray:
    """``[K]``: the largest weight that makes each output channel."""
    return weight.reshape(-1, weight.shape[-1]).max(0)


def _of_inputs(weight: np.ndarray, channels: int) -> np.ndarray:
    """``[C]``: the largest weight that reads each of so many input channels."""
    *_, c, k = weight.shape
    groups = channels // c
    by_group = weight.reshape(-1, c, groups, k // groups).max((0, 3))
    return by_group.T.reshape(-1)


def _chain(network: Network, maker: ConvNode) -> tuple[ConvNode, list[int], list[ConvNode]] | None:
    """A layer, the values that carry its output, and the layers that read them; or None."""
    activation = "none" if maker.activation is None else maker.activation.kind
    if maker.out not in network.int8 or maker.residual is not None:
        return None
    if activation not in HOMOGENEOUS or maker.placement.of_k > 1:
        return None
    (axis,) = maker.placement.channel_axes
    values, readers = [maker.out], []
    for value in values:
        if value in network.graph.outputs:
            return None
        for node in network.nodes:
            if value not in node.inputs:
                continue
            if isinstance(node, ConvNode):
                if node.residual == value or node.placement.x_axes[-node.placement.of_c :] != (
                    axis,
                ):
                    return None
                readers.append(node)
            elif isinstance(node, MaxPool | Pad) and network.runs_in_int8(node):
                values.append(node.out)
            else:
                return None
    group = {v for v, g in network.group.items() if g == network.group[maker.out]}
    return (maker, values, readers) if readers and group == set(values) else None
