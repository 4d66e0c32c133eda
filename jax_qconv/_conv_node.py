"""A convolution or matrix product of a network, with all that is folded into it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._activation import Activation
from jax_qconv._conv import qconv
from jax_qconv._graph import Const, Graph, Ref
from jax_qconv._layer_info import LayerInfo
from jax_qconv._linear import prepack_linear, qlinear
from jax_qconv._pack import prepack
from jax_qconv._packed_conv import PackedConv
from jax_qconv._placement import Placement, merged, split, vector
from jax_qconv._spec import Ints
from jax_qconv._values import Held, Quantisation, Values


@dataclasses.dataclass(frozen=True)
class Affine:
    """One step of scaling or shifting each output channel.

    Attributes:
        kind: ``"add"``, ``"sub"``, ``"mul"``, ``"div"`` or ``"neg"``.
        operand: the other operand: constant, or made of parameters.
        swapped: whether it comes first.
        axes: of channels.
    """

    kind: str
    operand: Ref = dataclasses.field(default=Const(0.0))
    swapped: bool = False
    axes: Ints = ()


@dataclasses.dataclass(frozen=True, eq=False)
class ConvNode:
    """A convolution or matrix product with its epilogue: one call of a kernel.

    Attributes:
        name: of the layer, unique.
        info: what rules tell it by.
        places: of the steps that it stands for.
        x: number of its input.
        weight: operand with its weights.
        out: number of its output.
        placement: how it is placed.
        affine: what follows for each output channel, such as a bias or a batch norm.
        residual: number of what is added, or None.
        residual_mode: as `qconv` has it.
        activation: fused, or None.
        slopes: operand with those of prelu, or None.
    """

    name: str
    info: LayerInfo
    places: tuple[int, ...]
    x: int
    weight: Ref
    out: int
    placement: Placement
    affine: tuple[Affine, ...] = ()
    residual: int | None = None
    residual_mode: str | None = None
    activation: Activation | None = None
    slopes: Ref | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """Values that depend on data."""
        return (self.x,) if self.residual is None else (self.x, self.residual)

    def weights(self, values: Values) -> tuple[jax.Array, jax.Array | None]:
        """Real weights ``[R, S, C, K]``, the affine steps folded in, and a bias ``[K]``."""
        w = self.placement.weights(values.real(self.weight))
        if not self.affine:
            return w, None
        k = w.shape[-1]
        factor, term = jnp.ones(k, jnp.float32), jnp.zeros(k, jnp.float32)
        sizes = self._sizes(values.graph)
        for step in self.affine:
            v = vector(values.real(step.operand), step.axes, sizes)
            factor, term = _follow(step, factor, term, v)
        return w * jnp.broadcast_to(factor, w.shape), term

    def _sizes(self, graph: Graph) -> Ints:
        """Of the axes that K is made of."""
        return tuple(graph.shape(self.out)[axis] for axis in self.placement.channel_axes)

    def pack(
        self,
        values: Values,
        weight: jax.Array,
        scale: jax.Array,
        bias: jax.Array | None,
        quantisation: Callable[[int], Quantisation],
        pad_to: tuple[int | None, int | None],
        **out: Any,
    ) -> PackedConv:
        """Packed and bound.

        Args:
            values: that are known.
            weight: ``[R, S, C / groups, K; int8]`` or ``[C, K; int8]``.
            scale: of the weights.
            bias: ``[K; float32]`` or None.
            quantisation: scale and zero point of a value.
            pad_to: of `prepack`.
            out: out_scale and so on, of `PackedConv.bind`.
        """
        make = prepack_linear if self.placement.linear else prepack
        options = dict(self.placement.options)
        packed = make(weight, bias, weight_scale=scale, pad_to=pad_to, **options)
        x_scale, x_zero = quantisation(self.x)
        slopes = None
        if self.slopes is not None:
            axes = self.placement.channel_axes
            slopes = vector(values.real(self.slopes), axes, self._sizes(values.graph))
        r_scale, r_zero = (None, None) if self.residual is None else quantisation(self.residual)
        return packed.bind(
            x_scale=x_scale,
            x_zero_point=x_zero,
            residual_scale=r_scale,
            residual_zero_point=r_zero,
            residual_mode=self.residual_mode,
            activation=self.activation,
            slopes=slopes,
            **out,
        )

    def run(self, values: Values, packed: PackedConv, **engine: Any) -> None:
        """Leave the output among the values."""
        placed, sizes = self.placement, self._sizes(values.graph)
        x = merged(values.int8(self.x, placed.x_axes), placed.of_c)
        residual = None
        if self.residual is not None:
            residual = merged(values.int8(self.residual, placed.out_axes), placed.of_k)
        y = (qlinear if placed.linear else qconv)(x, packed, residual=residual, **engine)
        if isinstance(y, jax.Array):
            y = y.reshape(*y.shape[:-1], *sizes)
            order = sorted(range(y.ndim), key=placed.out_axes.__getitem__)
            y = jnp.transpose(y, order)
            values.set_real(self.out, y.astype(values.graph.avals[self.out].dtype))
        else:
            values.set_held(self.out, Held(split(y, sizes), placed.out_axes))


def _follow(step: Affine, factor: Any, term: Any, v: Any) -> tuple[Any, Any]:
    """y * factor + term, followed by a step."""
    match step.kind:
        case "add":
            return factor, term + v
        case "sub":
            return (-factor, v - term) if step.swapped else (factor, term - v)
        case "mul":
            return factor * v, term * v
        case "div":
            return factor / v, term / v
    return -factor, -term


def macs(node: ConvNode, graph: Graph) -> int:
    """Multiply-accumulates of a node."""
    k = math.prod(graph.shape(node.out)[axis] for axis in node.placement.channel_axes)
    return math.prod(graph.shape(node.out)) * math.prod(graph.shape(node.weight)) // k
