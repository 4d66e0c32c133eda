"""What calibration learns of a layer's input: its mean, and which of it is large together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._conv_node import ConvNode
from jax_qconv._graph import LAYERS, Graph, Step
from jax_qconv._values import Values

MOST_TAPS = 8192
"""Products in a sum, beyond which the matrix of them all is too large (256 MB)."""

PIXELS = 4096
"""Sums of each batch that are looked at; neighbours hardly differ."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Of a layer's input. A pytree.

    Attributes:
        mean: ``[C; float32]`` of each channel.
        pixels: ``[; float32]`` how many it is the mean of.
        second: ``[G, T, T; float32]`` for each group the mean product of any two of the T numbers
            that go into a sum, in the order C, R, S; None if it isn't wanted, or too large.
        sums: ``[; float32]`` how many it is the mean of.
    """

    mean: jax.Array
    pixels: jax.Array
    second: jax.Array | None
    sums: jax.Array

    @classmethod
    def of(cls, layer: ConvNode, values: Values, *, second: bool) -> Moments:
        """Of one batch; ``second`` says whether the second moments are wanted."""
        x = layer.placement.x(values.real(layer.x)).astype(jnp.float32)
        x = x.reshape(-1, x.shape[-1])
        if not second or _taps(layer, values.graph) > MOST_TAPS:
            return cls(x.mean(0), jnp.float32(len(x)), None, jnp.float32(0))
        rows = _sampled(_summands(layer, values))
        product = jnp.einsum("gnt,gnu->gtu", rows, rows, precision="highest") / rows.shape[1]
        return cls(x.mean(0), jnp.float32(len(x)), product, jnp.float32(rows.shape[1]))

    def merge(self, other: Moments) -> Moments:
        """Of both parts of the data."""
        pixels, sums = self.pixels + other.pixels, self.sums + other.sums
        mean = self.mean + (other.mean - self.mean) * (other.pixels / pixels)
        second = self.second
        if second is not None and other.second is not None:
            second = second + (other.second - second) * (other.sums / sums)
        return Moments(mean, pixels, second, sums)

    def divided(self, factors: Any) -> Moments:
        """Of the same input, each channel ``[C]`` divided by a number."""
        second = self.second
        if second is not None:
            groups, taps = second.shape[:2]
            by_tap = jnp.repeat(factors.reshape(groups, -1), taps * groups // len(factors), axis=1)
            second = second / (by_tap[:, :, None] * by_tap[:, None])
        return dataclasses.replace(self, mean=self.mean / factors, second=second)


def _taps(layer: ConvNode, graph: Graph) -> int:
    """How many products are in a sum."""
    return math.prod(layer.placement.weight_shape(graph.shape(layer.weight))[:-1])


def _step(layer: ConvNode, graph: Graph) -> Step:
    """The convolution or product of a layer."""
    return next(step for p in layer.places if (step := graph.steps[p]).name in LAYERS)


def _summands(layer: ConvNode, values: Values) -> jax.Array:
    """``[G, sums, T; float32]``: what goes into each sum, in the order C, R, S."""
    placement = layer.placement
    if placement.linear:
        x = placement.x(values.real(layer.x)).astype(jnp.float32)
        return x.reshape(1, -1, x.shape[-1])
    step = _step(layer, values.graph)
    params, graph = step.params, values.graph
    # With what was padded before it, and is folded into the layer.
    x = values.real(step.inputs[0])
    numbers = params["dimension_numbers"]
    x = jnp.transpose(x, numbers.lhs_spec).astype(jnp.float32)
    kernel = [graph.shape(step.inputs[1])[axis] for axis in numbers.rhs_spec[2:]]
    found = jax.lax.conv_general_dilated_patches(
        x,
        kernel,
        params["window_strides"],
        params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
    )
    found = jnp.moveaxis(found, 1, -1)
    if ("transpose", True) in placement.options:
        # The weights of a layer are those of the convolution, turned round.
        by_kernel = found.reshape(*found.shape[:-1], x.shape[1], *kernel)
        found = jnp.flip(by_kernel, range(-len(kernel), 0)).reshape(found.shape)
    groups: Any = params["feature_group_count"]
    rows = found.reshape(-1, groups, found.shape[-1] // groups)
    return jnp.swapaxes(rows, 0, 1)


def _sampled(rows: jax.Array) -> jax.Array:
    """Some of many rows, the same ones in each run."""
    n = rows.shape[1]
    if n <= PIXELS:
        return rows
    chosen = jax.random.randint(jax.random.key(0), (PIXELS,), 0, n)
    return rows[:, chosen]
