"""What goes into the sums of a layer, as calibration sees it: means, and what goes together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._conv_node import ConvNode
from jax_qconv._graph import LAYERS, Graph
from jax_qconv._values import Values

MOST_TAPS = 8192
"""Products in a sum, beyond which the matrix of them all is too large (256 MB)."""

SAMPLES = 4096
"""Sums of each batch that second moments are taken of; neighbours hardly differ."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Of the T numbers that go into a sum of each group, in the order C, R, S. A pytree.

    Attributes:
        mean: ``[G, T; float32]``, zeros of the padding included.
        second: ``[G, T, T; float32]``, the mean product of any two; None if it isn't wanted, or
            too large.
        sums: ``[; float32]`` how many sums these are the means of.
    """

    mean: jax.Array
    second: jax.Array | None
    sums: jax.Array

    @classmethod
    def of(cls, layer: ConvNode, values: Values, *, second: bool) -> Moments:
        """Of one batch; ``second`` says whether the second moments are wanted."""
        x = _input(layer, values)
        # The mean over images first: it is an image itself.
        mean = _summands(layer, values.graph, x.mean(0, keepdims=True)).mean(1)
        k = layer.placement.weight_shape(values.graph.shape(layer.weight))[-1]
        sums = jnp.float32(math.prod(values.graph.shape(layer.out)) // k)
        if not second or mean.shape[-1] > MOST_TAPS:
            return cls(mean, None, sums)
        rows = _sampled(_summands(layer, values.graph, x))
        product = jnp.einsum("gnt,gnu->gtu", rows, rows, precision="highest") / rows.shape[1]
        return cls(mean, product, sums)

    def merge(self, other: Moments) -> Moments:
        """Of both parts of the data."""
        sums = self.sums + other.sums
        mean, second = jax.tree.map(
            lambda a, b: a + (b - a) * (other.sums / sums),
            (self.mean, self.second),
            (other.mean, other.second),
        )
        return Moments(mean, second, sums)

    def divided(self, factors: Any) -> Moments:
        """Of the same input, each channel ``[C]`` divided by a number."""
        groups, taps = self.mean.shape
        by_tap = jnp.repeat(factors.reshape(groups, -1), taps * groups // len(factors), axis=1)
        second = self.second
        if second is not None:
            second = second / (by_tap[:, :, None] * by_tap[:, None])
        return dataclasses.replace(self, mean=self.mean / by_tap, second=second)


def _input(layer: ConvNode, values: Values) -> jax.Array:
    """``[N, C, H, W] or [N, C; float32]``, with the padding of steps that are folded in."""
    if layer.placement.linear:
        x = layer.placement.x(values.real(layer.x))
        return x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    step = _convolution(layer, values.graph)
    spec = step.params["dimension_numbers"].lhs_spec
    return jnp.transpose(values.real(step.inputs[0]), spec).astype(jnp.float32)


def _convolution(layer: ConvNode, graph: Graph) -> Any:
    return next(step for place in layer.places if (step := graph.steps[place]).name in LAYERS)


def _summands(layer: ConvNode, graph: Graph, x: jax.Array) -> jax.Array:
    """``[G, sums, T]``: what goes into each sum, of what `_input` gives."""
    if layer.placement.linear:
        return x[None]
    step = _convolution(layer, graph)
    params = step.params
    w_spec = params["dimension_numbers"].rhs_spec
    kernel = [graph.shape(step.inputs[1])[axis] for axis in w_spec[2:]]
    found = jax.lax.conv_general_dilated_patches(
        x,
        kernel,
        params["window_strides"],
        params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )
    found = jnp.moveaxis(found, 1, -1)
    if ("transpose", True) in layer.placement.options:
        # The weights of a layer are those of the convolution, turned round.
        by_kernel = found.reshape(*found.shape[:-1], x.shape[1], *kernel)
        found = jnp.flip(by_kernel, range(-len(kernel), 0)).reshape(found.shape)
    groups = params["feature_group_count"]
    return found.reshape(-1, groups, found.shape[-1] // groups).swapaxes(0, 1)


def _sampled(rows: jax.Array) -> jax.Array:
    """Some of many rows, the same ones in each run."""
    n = rows.shape[1]
    if n <= SAMPLES:
        return rows
    return rows[:, jax.random.randint(jax.random.key(0), (SAMPLES,), 0, n)]
