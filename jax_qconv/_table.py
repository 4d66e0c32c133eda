"""Functions of one int8 tensor: a table of 256 entries, and a lookup.

Each entry is computed once, in float64, so that the cost of a function doesn't matter. With
concrete scales the table is made on the host and is a constant of the program: the op is one
kernel. With traced scales the program makes it, in a kernel of 256 elements before the lookup.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _steps
from jax_qconv._activation import Activation, as_activation
from jax_qconv._arrays import explicit_sharding, is_concrete
from jax_qconv._quantize import QTensor

# The integers in the order of their bytes: an entry is found by its byte, read as uint8.
_INTEGERS = np.arange(256, dtype=np.uint8).view(np.int8)


def requantize(x: QTensor, *, out_scale: Any, out_zero_point: Any = None) -> QTensor:
    """Express int8 data in another scale: q = clip(rint((x - zp_x) * m + zp_y), -128, 127).

    m = x.scale / out_scale is computed in float64 and rounded once to float32. What is rounded
    to an integer is the exact value of the formula; half goes to even. The result is the same
    on all backends.

    Args:
        x: ``[..., C; int8]``.
        out_scale: ``[; float32]`` positive, real units per integer step.
        out_zero_point: ``[; int32]`` in [-128, 127], or None for symmetric data.

    Returns:
        A `QTensor` of the shape of ``x``, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on a bad scale or zero point.
    """
    return _apply("requantize", x, as_activation(None), out_scale, out_zero_point)


def qgelu(
    x: QTensor, *, out_scale: Any, out_zero_point: Any = None, approximate: bool = True
) -> QTensor:
    """The Gaussian error linear unit of int8 data; see `qactivation` for the numerics.

    Args:
        x: ``[..., C; int8]``.
        out_scale: ``[; float32]`` positive, real units per integer step.
        out_zero_point: ``[; int32]`` in [-128, 127], or None for symmetric data.
        approximate: True is the form with tanh (the default of `jax.nn.gelu`), False the exact
            one with erf (the default of PyTorch).

    Returns:
        A `QTensor` of the shape of ``x``, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on a bad scale or zero point.
    """
    if not isinstance(approximate, bool):
        raise TypeError(f"approximate must be True or False, got {approximate!r}.")
    kind = "gelu_tanh" if approximate else "gelu"
    return _apply("qgelu", x, as_activation(kind), out_scale, out_zero_point)


def qactivation(
    x: QTensor,
    activation: Activation | str | None,
    *,
    out_scale: Any,
    out_zero_point: Any = None,
) -> QTensor:
    """Any activation of int8 data, to int8.

    none, relu, clip and leaky_relu: q = clip(rint(act(s) + zp_y), -128, 127), where
    s = (x - zp_x) * m as in `requantize`. Exact, the same on all backends. Bounds of clip are
    divided by out_scale in float64 and rounded once to float32; leaky_relu rounds a negative s
    to float32, and multiplies it with the float32 slope.

    The others: q = clip(rint(f(r) * m + zp_y), -128, 127), where r = (x - zp_x) * x.scale is
    exact in float64, f(r) is float64 and rounded once to float32, and m = 1 / out_scale is
    computed in float64 and rounded once to float32; f(r) * m + zp_y is exact. For gelu f is
    r * erfc(-r / sqrt(2)) and m half of that; for hard_sigmoid f is clip(r + 3, 0, 6), for
    hard_swish r * clip(r + 3, 0, 6), and m a sixth of that: these two are the same on all
    backends. exp, tanh and erfc differ between backends in their last bits: there an entry can
    differ by one step, but only where that changes the rounding to float32 (once in 10**8) and
    then the rounding to an integer. With concrete scales the host computes them, whatever the
    backend.

    Args:
        x: ``[..., C; int8]``.
        activation: ``"relu"``, ``"relu6"``, ``"leaky_relu"``, ``"sigmoid"``, ``"tanh"``,
            ``"silu"``, ``"gelu"`` (with erf), ``"gelu_tanh"``, ``"hard_sigmoid"``,
            ``"hard_swish"``, an `Activation`, or None.
        out_scale: ``[; float32]`` positive, real units per integer step.
        out_zero_point: ``[; int32]`` in [-128, 127], or None for symmetric data.

    Returns:
        A `QTensor` of the shape of ``x``, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on an unknown activation, a bad scale or zero point.
    """
    chosen = as_activation(activation)
    return _apply("qactivation", x, chosen, out_scale, out_zero_point)


def _apply(
    op: str, x: QTensor, activation: Activation, out_scale: Any, out_zero_point: Any
) -> QTensor:
    x = _steps.operand(op, "x", x)
    scale, zero = _steps.quantization(out_scale, out_zero_point)
    x = _steps.guarded(op, x, scale)
    values = lookup(table(x, activation, scale, zero), x.values)
    return QTensor(values, scale, zero, x.channels)


def table(x: QTensor, activation: Activation, out_scale: Any, out_zero_point: Any) -> Any:
    """What becomes of each integer of ``x`` ``[256; int8]``, by its byte.

    numpy where all scales and zero points are concrete, else traced.
    """
    zeros = [zero for zero in (x.zero_point, out_zero_point) if zero is not None]
    xp = np if all(map(is_concrete, (x.scale, out_scale, *zeros))) else jnp
    with jax.enable_x64(True), np.errstate(over="ignore", under="ignore"):
        t = _steps.wide(xp, _INTEGERS)
        if x.zero_point is not None:
            t = t - _steps.wide(xp, x.zero_point)
        if activation.kind in FUNCTIONS:
            function, divisor = FUNCTIONS[activation.kind]
            m = _steps.ratio(np.float64(1), over=[out_scale, np.float64(divisor)])
            s = _steps.to_float32(xp, function(xp, t * _steps.wide(xp, x.scale))) * m
        else:
            bounds = _steps.limits(activation, out_scale)
            s = t * _steps.ratio(x.scale, over=[out_scale])
            s = _steps.activate(xp, s, activation, bounds)
        return _steps.to_int8(xp, s, out_zero_point)


def lookup(entries: Any, values: jax.Array) -> jax.Array:
    """The entry of each value ``[...; int8]``; nothing is done if all are the values."""
    if isinstance(entries, np.ndarray) and (entries == _INTEGERS).all():
        return values
    index = jax.lax.bitcast_convert_type(values, jnp.uint8)
    sharding = explicit_sharding(values)
    # JAX doesn't infer the sharding of a lookup, though it is that of the index.
    options = {} if sharding is None else {"out_sharding": sharding}
    return jnp.asarray(entries).at[index].get(mode="promise_in_bounds", **options)


# Functions of real numbers [float64].


def _gelu(xp: Any, r: Any) -> Any:
    erfc = np.vectorize(math.erfc, otypes=[np.float64]) if xp is np else jax.lax.erfc
    return r * erfc(r * -math.sqrt(0.5))


def _gelu_tanh(xp: Any, r: Any) -> Any:
    # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
    return r / (1 + xp.exp(-2 * math.sqrt(2 / math.pi) * (r + 0.044715 * (r * r * r))))


FUNCTIONS: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "sigmoid": (lambda xp, r: 1 / (1 + xp.exp(-r)), 1),
    "tanh": (lambda xp, r: xp.tanh(r), 1),
    "silu": (lambda xp, r: r / (1 + xp.exp(-r)), 1),
    "gelu": (_gelu, 2),
    "gelu_tanh": (_gelu_tanh, 1),
    "hard_sigmoid": (lambda xp, r: xp.clip(r + 3, 0, 6), 6),
    "hard_swish": (lambda xp, r: r * xp.clip(r + 3, 0, 6), 6),
}
"""The activations that are computed in real units: a function, over a number."""
