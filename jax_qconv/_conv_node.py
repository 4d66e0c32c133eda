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
from jax_qconv._graph import Const, Graph, Ref, Step
from jax_qconv._layer_info import LayerInfo
from jax_qconv._linear import prepack_linear, qlinear
from jax_qconv._pack import prepack
from jax_qconv._packed_conv import PackedConv
from jax_qconv._spec import Ints, Pads
from jax_qconv._values import Held, Quantisation, Values


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a convolution or matrix product is placed.

    Attributes:
        x_axes: the axes of its input in the order N, H, W, C.
        w_axes: those of its weights in the order R, S, C, K; of a matrix product C, K.
        out_axes: those of its output in the order N, P, Q, K.
        options: arguments of `prepack`.
        linear: whether it is a matrix product.
    """

    x_axes: Ints
    w_axes: Ints
    out_axes: Ints
    options: tuple[tuple[str, Any], ...] = ()
    linear: bool = False

    @classmethod
    def of_conv(cls, step: Step, graph: Graph, pads: Pads | None) -> Placement | str:
        """Of a ``conv_general_dilated``; or why it has none here.

        Args:
            step: the convolution.
            graph: it is of.
            pads: further padding of the spatial axes, (before, after) for each.
        """
        p = step.params
        numbers = p["dimension_numbers"]
        x_spec, w_spec, out_spec = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        rank = len(x_spec) - 2
        if rank not in (1, 2, 3):
            return f"it has {rank} spatial axes"
        if p["batch_group_count"] != 1:
            return "it has batch groups"
        padding = [(int(a), int(b)) for a, b in p["padding"]]
        if pads is not None:
            padding = [(a + c, b + d) for (a, b), (c, d) in zip(padding, pads, strict=True)]
        dilation = tuple(p["rhs_dilation"])
        options = {"dilation": dilation, "groups": p["feature_group_count"]}
        if any(n > 1 for n in p["lhs_dilation"]):
            if pads is not None or any(n > 1 for n in p["window_strides"]):
                return "it is transposed, and strided or padded beforehand"
            kernel = [graph.shape(step.inputs[1])[axis] for axis in w_spec[2:]]
            reach = [(n - 1) * d for n, d in zip(kernel, dilation, strict=True)]
            # What the padding leaves out of the whole output; less than nothing is added.
            crops = [(r - a, r - b) for r, (a, b) in zip(reach, padding, strict=True)]
            more = tuple(max(-after, 0) for _, after in crops)
            padding = [(before, max(after, 0)) for before, after in crops]
            strides = tuple(p["lhs_dilation"])
            if any(m >= s for m, s in zip(more, strides, strict=True)):
                return "its output is padded beyond what any input reaches"
            options |= {"transpose": True, "output_padding": more}
        else:
            strides = tuple(p["window_strides"])
        if any(side < 0 for pair in padding for side in pair):
            return f"its padding {padding} cuts off"
        options |= {"strides": strides, "padding": tuple(padding)}
        return cls(
            x_axes=(x_spec[0], *x_spec[2:], x_spec[1]),
            w_axes=(*w_spec[2:], w_spec[1], w_spec[0]),
            out_axes=(out_spec[0], *out_spec[2:], out_spec[1]),
            options=tuple(options.items()),
        )

    @classmethod
    def of_dot(cls, step: Step, graph: Graph, x_first: bool) -> Placement | str:
        """Of a ``dot_general`` with weights of two axes; or why it has none here."""
        contracting, batch = step.params["dimension_numbers"]
        x, w = (0, 1) if x_first else (1, 0)
        if batch[0] or len(graph.shape(step.inputs[w])) != 2 or len(contracting[w]) != 1:
            return "its weights aren't a matrix"
        rank, (axis,), (w_axis,) = len(graph.shape(step.inputs[x])), contracting[x], contracting[w]
        others = tuple(i for i in range(rank) if i != axis)
        out_axes = tuple(range(rank)) if x_first else (*range(1, rank), 0)
        return cls((*others, axis), (w_axis, 1 - w_axis), out_axes, linear=True)

    @property
    def channel_axis(self) -> int:
        """The output's axis of channels."""
        return self.out_axes[-1]

    def transposed(self, permutation: Ints) -> Placement:
        """With its output's axes in another order."""
        out_axes = tuple(permutation.index(axis) for axis in self.out_axes)
        return dataclasses.replace(self, out_axes=out_axes)


@dataclasses.dataclass(frozen=True)
class Affine:
    """One step of scaling or shifting each output channel.

    Attributes:
        kind: ``"add"``, ``"sub"``, ``"mul"``, ``"div"`` or ``"neg"``.
        operand: the other operand: constant, or made of parameters.
        swapped: whether it comes first.
        axis: of channels.
    """

    kind: str
    operand: Ref = dataclasses.field(default=Const(0.0))
    swapped: bool = False
    axis: int = 0


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
        placed = self.placement
        w = jnp.transpose(values.real(self.weight), placed.w_axes).astype(jnp.float32)
        if ("transpose", True) in placed.options:
            w = jnp.flip(w, tuple(range(w.ndim - 2)))
        if not self.affine:
            return w, None
        k = w.shape[-1]
        factor, term = jnp.ones(k, jnp.float32), jnp.zeros(k, jnp.float32)
        for step in self.affine:
            v = _vector(values.real(step.operand), step.axis, k)
            factor, term = _follow(step, factor, term, v)
        return w * jnp.broadcast_to(factor, w.shape), term

    def pack(
        self,
        values: Values,
        weight: jax.Array,
        scale: jax.Array,
        bias: jax.Array | None,
        quantisation: Callable[[int], Quantisation],
        **out: Any,
    ) -> PackedConv:
        """Packed and bound.

        Args:
            values: that are known.
            weight: ``[R, S, C / groups, K; int8]`` or ``[C, K; int8]``.
            scale: of the weights.
            bias: ``[K; float32]`` or None.
            quantisation: scale and zero point of a value.
            out: out_scale and so on, of `PackedConv.bind`.
        """
        make = prepack_linear if self.placement.linear else prepack
        packed = make(weight, bias, weight_scale=scale, **dict(self.placement.options))
        x_scale, x_zero = quantisation(self.x)
        slopes = None
        if self.slopes is not None:
            axis = self.placement.channel_axis
            slopes = _vector(values.real(self.slopes), axis, packed.out_channels)
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
        placed = self.placement
        x = values.int8(self.x, placed.x_axes)
        residual = None
        if self.residual is not None:
            residual = values.int8(self.residual, placed.out_axes)
        y = (qlinear if placed.linear else qconv)(x, packed, residual=residual, **engine)
        if isinstance(y, jax.Array):
            order = sorted(range(y.ndim), key=placed.out_axes.__getitem__)
            y = jnp.transpose(y, order)
            values.set_real(self.out, y.astype(values.graph.avals[self.out].dtype))
        else:
            values.set_held(self.out, Held(y, placed.out_axes))


def _vector(array: Any, axis: int, k: int) -> jax.Array:
    """``[K]`` of an array that differs along one axis only."""
    array = jnp.asarray(array, jnp.float32)
    if array.ndim == 0:
        return jnp.broadcast_to(array, (k,))
    index = tuple(slice(None) if i == axis else 0 for i in range(array.ndim))
    return jnp.broadcast_to(array[index], (k,))


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
    k = node.placement.w_axes[-1]
    weight = graph.shape(node.weight)
    return math.prod(graph.shape(node.out)) * math.prod(weight) // weight[k]
