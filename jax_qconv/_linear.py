"""Matrix products on packed weights: `prepack_linear`, `qlinear`.

A linear layer is a convolution of single pixels, and runs on the same kernels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._arrays import as_array
from jax_qconv._conv import qconv
from jax_qconv._pack import prepack
from jax_qconv._packed_conv import PackedConv, check_format
from jax_qconv._quantize import QTensor, checked


def prepack_linear(
    weight: jax.Array,
    bias: jax.Array | None = None,
    *,
    weight_scale: Any = None,
    layout: str = "IO",
    per_channel: bool = True,
    pad_to: tuple[int | None, int | None] | None = None,
) -> PackedConv:
    """Quantise, pad and lay out the weights of a linear layer.

    Args:
        weight: ``[C, K; float]``, or ``[K, C]`` with the ``layout`` ``"OI"``; or int8 data, taken
            as they are together with ``weight_scale``.
        bias: ``[K; float]`` in real units, or None.
        weight_scale: ``[K or scalar; float32]`` of int8 weights.
        layout: ``"IO"`` (JAX, Flax's Dense) or ``"OI"`` (PyTorch).
        per_channel: one scale per output channel (True) or one for the matrix.
        pad_to: (C, K) channel counts to store; see `prepack`.

    Returns:
        An unbound `PackedConv`, for `qlinear`.

    Raises:
        TypeError, ValueError: as `prepack`.
    """
    if layout not in ("IO", "OI"):
        raise ValueError(f"layout={layout!r} is not known; use 'IO' or 'OI'.")
    weight = jnp.asarray(as_array("weight", weight))
    if weight.ndim != 2:
        raise ValueError(
            f"weight of a linear layer must have 2 axes ({layout}), got shape {list(weight.shape)}."
        )
    return prepack(
        weight[None] if layout == "IO" else weight[:, None],
        bias,
        weight_scale=weight_scale,
        layout="WIO" if layout == "IO" else "OWI",
        padding=0,
        per_channel=per_channel,
        pad_to=pad_to,
    )


def qlinear(
    x: QTensor | jax.Array, packed: PackedConv, *, residual: QTensor | None = None, **options: Any
) -> QTensor | jax.Array:
    """int8 matrix product with scale, bias, residual, activation and rounding in one kernel.

    Args:
        x: ``[..., C; int8]`` as a `QTensor`, or a bare array as in `qconv`.
        packed: from `prepack_linear`, bound or not.
        residual: ``[..., K; int8]``, or None.
        options: the other keyword arguments of `qconv`: out_scale, activation and so on.

    Returns:
        A `QTensor` ``[..., K; int8]``; else an array ``[..., K; out_dtype]``. Numerics are those
        of `qconv`.

    Raises:
        TypeError, ValueError, EngineUnavailableError: as `qconv`.
    """
    check_format(packed)
    found = _unlike_linear(packed)
    if found:
        raise ValueError(
            f"packed has {found}; qlinear takes packs from prepack_linear, others go to qconv."
        )
    x = checked("x", x) if isinstance(x, QTensor) else x
    values = x.values if isinstance(x, QTensor) else jnp.asarray(as_array("x", x))
    if values.ndim == 0:
        raise ValueError("x must have an axis of channels (the last one), got a scalar.")
    outer = values.shape[:-1]

    def pixels(v: jax.Array) -> jax.Array:
        """Of a batch of images of one pixel each."""
        return v.reshape(math.prod(outer), 1, v.shape[-1])

    if isinstance(residual, QTensor):
        residual = checked("residual", residual)
        if residual.shape != (*outer, packed.out_channels):
            raise ValueError(
                f"residual has shape {list(residual.shape)}, but the output has "
                f"{[*outer, packed.out_channels]}."
            )
        residual = dataclasses.replace(residual, values=pixels(residual.values))
    flat = pixels(values)
    x = dataclasses.replace(x, values=flat) if isinstance(x, QTensor) else flat
    out = qconv(x, packed, residual=residual, **options)
    if isinstance(out, QTensor):
        values = out.values.reshape(*outer, out.values.shape[-1])
        return dataclasses.replace(out, values=values)
    return out.reshape(*outer, out.shape[-1])


def _unlike_linear(packed: PackedConv) -> str | None:
    """What a pack has that `prepack_linear` gives none, in words; None where it has nothing."""
    if packed.kernel_size != (1,):
        return f"a kernel of size {packed.kernel_size}"
    if packed.transpose:
        return "a transposed convolution"
    if packed.strides != (1,):
        return f"strides={packed.strides}"
    # Of a kernel of one element and stride 1, "SAME" is none as well.
    if packed.padding not in ("SAME", "VALID", ((0, 0),)):
        return f"padding={packed.padding}"
    return None
