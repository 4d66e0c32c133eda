"""The scales of a call: bound to the pack, or folded here; refused where they contradict."""

from __future__ import annotations

from typing import Any

import numpy as np

from jax_qconv import _spec
from jax_qconv._activation import as_activation
from jax_qconv._arrays import check_scale, check_zero_point, is_concrete
from jax_qconv._binding import Binding, resolve_out_dtype
from jax_qconv._packed_conv import PackedConv
from jax_qconv._quantize import QTensor


def resolve_binding(
    packed: PackedConv,
    x: QTensor,
    residual: QTensor | None,
    residual_mode: str | None,
    out_scale: Any,
    out_zero_point: Any,
    out_dtype: Any,
    activation: Any,
    slopes: Any,
) -> Binding | None:
    """The folded scales, None for int32."""
    if packed.binding is not None:
        _check_binding(
            packed.binding,
            x,
            residual,
            residual_mode,
            out_scale=out_scale,
            out_zero_point=out_zero_point,
            out_dtype=out_dtype,
            activation=activation,
        )
        if slopes is not None:
            raise ValueError("slopes are bound: pass them to packed.bind, not to the call.")
        return packed.binding
    dtype = resolve_out_dtype(out_dtype, out_scale)
    if dtype == "int32":
        kind = as_activation(activation).kind
        extras = {
            "packed has a bias": packed.bias is not None,
            "a residual was given": residual is not None,
            f"activation is {kind!r}": kind != "none",
            "out_zero_point was given": out_zero_point is not None,
        }
        found = [text for text, present in extras.items() if present]
        if found:
            raise ValueError(
                f"out_dtype='int32' is the bare accumulator, but {' and '.join(found)}; use "
                "out_dtype='float32' for an output with an epilogue."
            )
        return None
    if x.scale is None:
        raise TypeError(
            f"x is a bare int8 array, but for {dtype} outputs its scale is needed; pass "
            "QTensor(x, scale), x_scale=, or a pack bound with packed.bind(x_scale=...)."
        )
    bound = packed.bind(
        x_scale=x.scale,
        x_zero_point=x.zero_point,
        out_scale=out_scale,
        out_zero_point=out_zero_point,
        residual_scale=None if residual is None else check_scale("residual_scale", residual.scale),
        residual_zero_point=None if residual is None else residual.zero_point,
        residual_mode=residual_mode or "add",
        activation=activation,
        slopes=slopes,
        out_dtype=dtype,
    )
    return bound.binding


def _check_binding(
    binding: Binding,
    x: QTensor,
    residual: QTensor | None,
    residual_mode: str | None,
    *,
    out_scale: Any,
    out_zero_point: Any,
    out_dtype: Any,
    activation: Any,
) -> None:
    """Refuse arguments that contradict what the pack was bound to."""
    if (residual is None) != (binding.residual_scale is None):
        raise ValueError(
            "packed was bound "
            + ("with a residual_scale, but no residual was given." if residual is None else
               "without a residual_scale, but a residual was given.")
            + " Bind it again for this call."
        )  # fmt: skip
    zero_points = {"x": (x.zero_point, binding.x_zero_point)}
    if residual is not None:
        zero_points["residual"] = residual.zero_point, binding.residual_zero_point
    for name, (given, bound) in zero_points.items():
        if (given is None) != (bound is None):
            raise ValueError(
                f"packed was bound {'without' if bound is None else 'with'} a zero point of "
                f"{name}, but {name} has {'none' if given is None else 'one'}. Bind it again."
            )
    wanted = {
        "out_dtype": (out_dtype and _spec.as_out_dtype(out_dtype), binding.out_dtype),
        "activation": (activation and as_activation(activation), binding.activation),
        "residual_mode": (residual_mode, binding.epilogue.residual_mode),
    }
    for name, (given, bound) in wanted.items():
        if given is not None and given != bound:
            raise ValueError(f"packed was bound to {name}={bound}, but {name}={given} was given.")
    for name, given, bound in (
        ("out_scale", out_scale, binding.out_scale),
        ("out_zero_point", out_zero_point, binding.out_zero_point),
    ):
        if given is not None and bound is None:
            raise ValueError(f"packed was bound to {binding.out_dtype} outputs, without an {name}.")
    r_scale, r_zero = (None, None) if residual is None else (residual.scale, residual.zero_point)
    for name, given, bound, check in (
        ("x's scale", x.scale, binding.x_scale, check_scale),
        ("x's zero point", x.zero_point, binding.x_zero_point, check_zero_point),
        ("out_scale", out_scale, binding.out_scale, check_scale),
        ("out_zero_point", out_zero_point, binding.out_zero_point, check_zero_point),
        ("residual's scale", r_scale, binding.residual_scale, check_scale),
        ("residual's zero point", r_zero, binding.residual_zero_point, check_zero_point),
    ):
        if given is None or given is bound:
            continue
        check(name, given)
        known = is_concrete(given) and is_concrete(bound)
        if known and np.asarray(given).astype(np.float32) != np.asarray(bound):
            raise ValueError(f"packed was bound to another {name}: {bound}, but got {given}.")
