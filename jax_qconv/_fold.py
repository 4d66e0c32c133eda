"""Scales to the constants of the epilogue, each computed in float64 and rounded once.

The epilogue is y = act(fma(r - z_r, m_r, fma(acc, m[k], b[k]))) in float32, with
m = s_x * s_w / s_y, b = bias / s_y + z_y, m_r = s_r / s_y and the bounds of clip over s_y, plus
z_y; s_y = 1 and z_y = 0 for float outputs, whose y is in real units. Activations that don't scale
run in real units (s_y = 1, z_y = 0 above) and end in fma(y, 1 / s_y, z_y). Constants below 2**-126
become zero.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._activation import SCALE_FREE, Activation
from jax_qconv._arrays import is_concrete

RESIDUAL_MODES = ("add", "add_after_activation", "average")
"""How a residual is joined: act(y + r), act(y) + r or act((y + r) / 2)."""

_TINY = 2.0**-126  # smallest normal float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epilogue:
    """What follows the accumulation, without the numbers; hashable.

    Attributes:
        activation: that is fused, in real units.
        out_dtype: of the output.
        residual_mode: one of `RESIDUAL_MODES`, or None without a residual.
        out_zero_point, residual_zero_point: whether there is one.
    """

    activation: Activation
    out_dtype: str
    residual_mode: str | None
    out_zero_point: bool
    residual_zero_point: bool

    @property
    def activation_first(self) -> bool:
        """Whether the residual is added after the activation."""
        return self.residual_mode == "add_after_activation"

    @property
    def requantize(self) -> bool:
        """Whether the activation runs in real units, and is scaled afterwards."""
        kind = self.activation.kind
        # These scale, but not around another zero.
        bent = kind in ("leaky_relu", "prelu") or (self.activation_first and kind != "none")
        return self.out_dtype == "int8" and (
            kind not in SCALE_FREE or (bent and self.out_zero_point)
        )

    @property
    def kernel_activation(self) -> str:
        """The kind that the kernel has: around another zero, relu is a clip."""
        shifted = self.out_zero_point and not self.requantize
        kind = self.activation.kind
        return "clip" if kind == "relu" and shifted else kind

    @property
    def fields(self) -> dict[str, Any]:
        """Those of a `Problem`."""
        return {
            "out_dtype": self.out_dtype,
            "activation": self.kernel_activation,
            "slope": self.activation.slope,
            "residual": self.residual_mode is not None,
            "residual_zero_point": self.residual_zero_point,
            "activation_first": self.activation_first,
            "requantize": self.requantize,
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constants:
    """What the epilogue multiplies, adds and clips by; float32, None where it isn't needed.

    Attributes:
        m: ``[K]`` per-channel factor of the accumulator, K as stored.
        b: ``[K]`` per-channel term.
        m_r: ``[]`` factor of the residual.
        z_r: ``[]`` zero point of the residual.
        lower: ``[]`` lower bound of clip.
        upper: ``[]`` upper bound of clip.
        slopes: ``[K]`` of prelu.
        m_y: ``[]`` steps of the output in a real unit.
        b_y: ``[]`` zero point of the output.
    """

    m: Any
    b: Any
    m_r: Any = None
    z_r: Any = None
    lower: Any = None
    upper: Any = None
    slopes: Any = None
    m_y: Any = None
    b_y: Any = None


def fold(
    epilogue: Epilogue,
    *,
    weight_scale: Any,
    bias: Any,
    x_scale: Any,
    out_scale: Any,
    out_zero_point: Any,
    residual_scale: Any,
    residual_zero_point: Any,
    slopes: Any,
    channels: int,
    stored: int,
    copies: int = 1,
) -> Constants:
    """Fold scales, zero points, bias and bounds into `Constants`.

    Args:
        epilogue: says which of them there are.
        weight_scale: ``[K or scalar; float32]``, K logical.
        bias, slopes: ``[K; float32]`` in real units, or None.
        x_scale, out_scale, residual_scale: ``[; float32]``; out_scale None means float output.
        out_zero_point, residual_zero_point: ``[; int32]`` or None.
        channels, stored: logical and stored K; padded channels get zeros.
        copies: how often the stored channels follow each other.
    """
    values = {
        "weight_scale": weight_scale,
        "bias": bias,
        "x_scale": x_scale,
        "out_scale": out_scale,
        "out_zero_point": out_zero_point,
        "residual_scale": residual_scale,
        "residual_zero_point": residual_zero_point,
        "slopes": slopes,
    }
    if all(v is None or is_concrete(v) for v in values.values()):
        # On the host: no program is compiled, and division is IEEE.
        with np.errstate(over="ignore"):
            host = {name: None if v is None else np.asarray(v) for name, v in values.items()}
            folded = _fold(np, epilogue, **host)
    else:
        with jax.enable_x64(True):
            folded = _fold(jnp, epilogue, **values)

    def spread(v: Any) -> jax.Array:
        padded = jnp.pad(jnp.broadcast_to(v, (channels,)), (0, stored - channels))
        return padded if copies == 1 else jnp.tile(padded, copies)

    arrays = {name: v if v is None else jnp.asarray(v, jnp.float32) for name, v in folded.items()}
    for name in ("m", "b", "slopes"):
        if arrays[name] is not None:
            arrays[name] = spread(arrays[name])
    return Constants(**arrays)


def _fold(
    xp: Any,
    epilogue: Epilogue,
    *,
    weight_scale: Any,
    bias: Any,
    x_scale: Any,
    out_scale: Any,
    out_zero_point: Any,
    residual_scale: Any,
    residual_zero_point: Any,
    slopes: Any,
) -> dict[str, Any]:
    """The formulas, once for the host (numpy) and once for traced scales (jax.numpy)."""

    def divide(a: Any, b: Any) -> Any:
        if xp is jnp:
            # XLA would turn a constant or a broadcast divisor into a product with its reciprocal.
            b = jax.lax.optimization_barrier(jnp.broadcast_to(b, a.shape))
        return a / b

    def f64(v: Any) -> Any:
        return xp.asarray(v).astype(xp.float64)

    def f32(v: Any) -> Any:
        # Kernels differ in whether they read subnormal numbers as zero, so give them none.
        return xp.where(xp.abs(v) < _TINY, np.float64(0), v).astype(xp.float32)

    zero = f64(0 if out_zero_point is None else out_zero_point)
    real_units = out_scale is None or epilogue.requantize
    half = 0.5 if epilogue.residual_mode == "average" else 1.0

    def in_steps(v: Any) -> Any:
        # A half of it is exact.
        return v if real_units else divide(v, f64(out_scale))

    def around_zero(v: Any) -> Any:
        return v if real_units else v + zero

    # The product of two float32 is exact in float64, so each line rounds twice at most there,
    # and once to float32, in the same way everywhere.
    found = dict.fromkeys(field.name for field in dataclasses.fields(Constants))
    found["m"] = f32(in_steps(f64(x_scale) * f64(weight_scale) * half))
    found["b"] = f32(around_zero(in_steps(f64(0.0 if bias is None else bias) * half)))
    if residual_scale is not None:
        found["m_r"] = f32(in_steps(f64(residual_scale) * half))
    if residual_zero_point is not None:
        found["z_r"] = f32(f64(residual_zero_point))
    if epilogue.kernel_activation == "clip":
        act = epilogue.activation
        lower, upper = (0.0, math.inf) if act.kind == "relu" else (act.lower, act.upper)
        found["lower"] = f32(around_zero(in_steps(f64(lower))))
        found["upper"] = f32(around_zero(in_steps(f64(upper))))
    if slopes is not None:
        found["slopes"] = f32(f64(slopes))
    if epilogue.requantize:
        found["m_y"] = f32(divide(f64(1.0), f64(out_scale)))
        found["b_y"] = f32(zero)
    return found
