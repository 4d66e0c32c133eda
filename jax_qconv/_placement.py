"""Where the axes of convolutions and matrix products lie."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._graph import Graph, Step
from jax_qconv._quantize import QTensor
from jax_qconv._spec import Ints, Pads


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a convolution or matrix product is placed.

    Attributes:
        x_axes: the axes of its input in the order N, H, W, C.
        w_axes: those of its weights in the order R, S, C, K; of a matrix product C, K.
        out_axes: those of its output in the order N, P, Q, K.
        options: arguments of `prepack`.
        linear: whether it is a matrix product.
        of_c: how many axes C is made of.
        of_k: how many axes K is made of.
    """

    x_axes: Ints
    w_axes: Ints
    out_axes: Ints
    options: tuple[tuple[str, Any], ...] = ()
    linear: bool = False
    of_c: int = 1
    of_k: int = 1

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
        """Of a ``dot_general`` with weights, which may have several axes; or why it has none."""
        contracting, batch = step.params["dimension_numbers"]
        if batch[0]:
            return "it is a batch of products, of other weights each"
        x, w = (0, 1) if x_first else (1, 0)
        x_others, w_others = (
            tuple(i for i in range(len(graph.shape(step.inputs[at]))) if i not in contracting[at])
            for at in (x, w)
        )
        if not (contracting[w] and w_others):
            return "its weights aren't a matrix"
        n, k = len(x_others), len(w_others)
        out_axes = tuple(range(n + k)) if x_first else (*range(k, n + k), *range(k))
        return cls(
            x_axes=(*x_others, *contracting[x]),
            w_axes=(*contracting[w], *w_others),
            out_axes=out_axes,
            linear=True,
            of_c=len(contracting[w]),
            of_k=k,
        )

    @property
    def channel_axes(self) -> Ints:
        """The output's axes that K is made of."""
        return self.out_axes[-self.of_k :]

    def x(self, array: jax.Array) -> jax.Array:
        """An input as ``[N, H, W, C]``."""
        array = jnp.transpose(array, self.x_axes)
        return array.reshape(*array.shape[: array.ndim - self.of_c], -1)

    def weights(self, array: jax.Array) -> jax.Array:
        """Weights as ``[R, S, C, K]``."""
        w = jnp.transpose(array, self.w_axes).astype(jnp.float32)
        if self.linear:
            return w.reshape(math.prod(w.shape[: self.of_c]), -1)
        return jnp.flip(w, tuple(range(w.ndim - 2))) if ("transpose", True) in self.options else w

    def weight_shape(self, shape: Ints) -> Ints:
        """That of `weights`, for an array of a shape."""
        ordered = tuple(shape[axis] for axis in self.w_axes)
        if not self.linear:
            return ordered
        return math.prod(ordered[: self.of_c]), math.prod(ordered[self.of_c :])

    def transposed(self, permutation: Ints) -> Placement:
        """With its output's axes in another order."""
        out_axes = tuple(permutation.index(axis) for axis in self.out_axes)
        return dataclasses.replace(self, out_axes=out_axes)


def vector(array: Any, axes: Ints, sizes: Ints) -> jax.Array:
    """``[K; float32]`` of an array that differs along some axes only, those that K is made of.

    Args:
        array: a number, or of as many axes as the output.
        axes: of channels.
        sizes: along these.
    """
    array = jnp.asarray(array, jnp.float32)
    if array.ndim:
        array = array[tuple(slice(None) if i in axes else 0 for i in range(array.ndim))]
        left = sorted(axes)
        array = jnp.transpose(array, [left.index(axis) for axis in axes])
    return jnp.broadcast_to(array, sizes).reshape(-1)


def merged(q: QTensor, count: int) -> QTensor:
    """With its last axes as one."""
    if count == 1:
        return q
    values = q.unpadded()
    return _with_values(q, values.reshape(*values.shape[: values.ndim - count], -1))


def split(q: QTensor, sizes: Ints) -> QTensor:
    """With its last axis as several: the inverse of `merged`."""
    if len(sizes) == 1:
        return q
    values = q.unpadded()
    return _with_values(q, values.reshape(*values.shape[:-1], *sizes))


def _with_values(q: QTensor, values: jax.Array) -> QTensor:
    return dataclasses.replace(q, values=values, channels=values.shape[-1])
