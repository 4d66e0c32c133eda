"""`qconv`: the int8 convolution on packed weights, with its fused epilogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv import _primitive, _zero_point
from jax_qconv._activation import Activation
from jax_qconv._arrays import as_array, check_zero_point, pad_channels
from jax_qconv._binding import Binding
from jax_qconv._fold import Constants
from jax_qconv._packed_conv import PackedConv, check_format
from jax_qconv._problem import ACCUMULATOR
from jax_qconv._quantize import QTensor, checked, quantize
from jax_qconv._resolve import resolve_binding


def qconv(
    x: QTensor | jax.Array,
    packed: PackedConv,
    *,
    residual: QTensor | None = None,
    residual_mode: str | None = None,
    x_scale: Any = None,
    x_zero_point: Any = None,
    out_scale: Any = None,
    out_zero_point: Any = None,
    out_dtype: Any = None,
    activation: Activation | str | None = None,
    slopes: Any = None,
    implementation: str | None = None,
    plan: str | None = None,
    autotune: str = "cached",
) -> QTensor | jax.Array:
    """int8 convolution with scale, bias, residual, activation and rounding in one kernel.

    Numerics, the same bytes on every backend and with every plan: the int32 accumulator is exact,
    acc = sum((x - z_x) * w), padded elements being real zeros;
    y = act(fma(r - z_r, m_r, fma(float32(acc), m[k], b[k]))) in float32, where
    m = x_scale * weight_scale / out_scale, b = bias / out_scale + z_y, m_r = residual_scale /
    out_scale (out_scale = 1, z_y = 0 for float outputs), each computed in float64 and rounded once.
    With residual_mode "average" m, bias and m_r are half of that; with "add_after_activation"
    y = fma(r - z_r, m_r, act(fma(float32(acc), m[k], b[k]))).
    An int8 output rounds half to even and saturates to [-128, 127]; float outputs round y half
    to even. int32 is the bare accumulator.

    Activations that don't scale run in real units, with out_scale = 1 and z_y = 0 above, and end in
    fma(y, 1 / out_scale, z_y): hard_sigmoid, min(max(fma(y, float32(1/6), 0.5), 0), 1); hard_swish,
    y times that; sigmoid, tanh, silu, gelu; and around an output zero point leaky_relu, prelu, and
    any activation that the residual is added after. sigmoid, tanh, silu and gelu are computed by
    each engine in its own way: there, outputs that are close to a tie may differ by one step.

    Args:
        x: ``[N, H, W, C; int8]`` (``[N, W, C]`` for 1-D, ``[N, D, H, W, C]`` for 3-D weights; N
            may be left out) as a `QTensor`; or a bare array of int8, or of floats that are then
            quantised, where the scale is known: from a bound pack or ``x_scale``. int8 data may
            come with or without the pack's padded channels.
        packed: weights and geometry from `prepack`. A bound one (`PackedConv.bind`) brings
            scales, activation and output dtype along; for an unbound one they are folded
            here, inside the program.
        residual: ``[N, P, Q, K; int8]``, or None.
        residual_mode: ``"add"`` (None means that): before the activation;
            ``"add_after_activation"``, or ``"average"``: act((y + r) / 2).
        x_scale: ``[; float32]`` scale of a bare array.
        x_zero_point: ``[; int32]`` zero point of a bare array, or None.
        out_scale: ``[; float32]`` scale of an int8 output.
        out_zero_point: ``[; int32]`` its zero point, or None.
        out_dtype: ``"int8"``, ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int32"``;
            None means int8 where out_scale is given (or bound), else float32.
        activation: ``"relu"``, ``"relu6"``, ``"silu"`` and so on, an `Activation`, or None.
        slopes: ``[K; float32]`` of ``"prelu"``.
        implementation: ``"cudnn"`` or ``"reference"``, which is then used or refused; None
            means on CUDA cuDNN or a kernel of this package, whichever is faster, and elsewhere the
            reference.
        plan: name of the plan to use or refuse, such as ``"cudnn:4:cfg=26"``; None chooses.
        autotune: how the plan is chosen when the call is compiled for a local GPU: ``"cached"``
            takes one that was tuned before, here or by the authors of this package, else what a
            model of the hardware picks; ``"on"`` tunes where there is none (seconds for each
            distinct convolution, see `tune`); ``"off"`` takes what the model picks. Results are
            the same bytes.

    Returns:
        A `QTensor` for int8 outputs; else an array ``[N, P, Q, K; out_dtype]``. An int32
        or float output has its padded channels sliced off.

    Raises:
        TypeError, ValueError: on arguments that don't fit together, when tracing.
        EngineUnavailableError: if what ``implementation`` or ``plan`` names can't be used.
    """
    check_format(packed)
    engine = _check_engine(implementation, plan, autotune)
    x = _as_qtensor(x, packed, x_scale, x_zero_point)
    batched = _is_batched(x.values, packed)
    x = x if batched else _map_values(lambda v: v[None], x)
    if residual is not None:
        residual = _check_residual(residual, batched, packed)
        residual = residual if batched else _map_values(lambda v: v[None], residual)
    values = _check_x(x, packed)
    direct = packed.form is None and packed.rank > 1
    _check_unsharded("x", values, axes=(values.ndim - 1,) if direct else range(1, values.ndim))
    _check_unsharded("packed", packed.weight, axes=range(packed.weight.ndim))
    binding = resolve_binding(
        packed, x, residual, residual_mode, out_scale, out_zero_point, out_dtype, activation, slopes
    )
    out = _convolve(packed, values, x.zero_point, residual, binding, engine)
    out = out if batched else out[0]
    if binding is not None and binding.out_dtype == "int8":
        return QTensor(out, binding.out_scale, binding.out_zero_point, packed.out_channels)
    return out[..., : packed.out_channels]


def _convolve(
    packed: PackedConv,
    values: jax.Array,
    zero_point: Any,
    residual: QTensor | None,
    binding: Binding | None,
    engine: dict[str, Any],
) -> jax.Array:
    """The call, in the form that the weights are packed in. ``[N, P, Q, K as stored]``."""
    size, form = values.shape[1:-1], packed.form
    fields: dict[str, Any] = ACCUMULATOR if binding is None else binding.epilogue.fields
    problem = packed.problem(values.shape, **fields)
    operands: dict[str, Any] = {"x": values, "w": packed.weight}
    if form is not None:
        fill = 0 if zero_point is None else jnp.asarray(zero_point, jnp.int8)
        operands["x"] = form.x(values, packed.padding, fill)
    if zero_point is not None:
        zero_point = jnp.asarray(zero_point, jnp.int32)
        offset = None if binding is None else binding.offset
        x = operands["x"].reshape(problem.x_shape)
        problem, operands["x"] = _zero_point.fill_border(problem, x, zero_point)
        if offset is None:
            offset = _zero_point.offset(problem, packed.weight.reshape(problem.w_shape), zero_point)
        elif binding is not None and binding.input_size not in (None, size):
            raise ValueError(
                f"packed was bound for input_size={binding.input_size}, but x is of size {size}. "
                "Bind it for this size, or with input_size=None."
            )
        operands["z"] = offset
    if binding is not None:
        constants = binding.constants
        for field in dataclasses.fields(Constants):
            operands[field.name] = getattr(constants, field.name)
    if residual is not None:
        out_shape = values.shape[0], *packed.out_size(size), packed.out_channels
        operands["r"] = _residual_values(residual, out_shape, packed)
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "r": problem.out_shape}
    operands |= {name: operands[name].reshape(s) for name, s in shapes.items() if name in operands}
    out = _primitive.bind(problem, tuple(operands[n] for n in problem.operand_names), **engine)
    if packed.rank == 1:
        out = out[:, 0]
    return out if form is None else form.out(out, size, packed.padding)


def _check_engine(implementation: Any, plan: Any, autotune: Any) -> dict[str, Any]:
    if implementation not in (None, *_primitive.IMPLEMENTATIONS):
        raise ValueError(
            f"implementation={implementation!r} is not known; use one of "
            f"{list(_primitive.IMPLEMENTATIONS)} or None."
        )
    if autotune not in _primitive.AUTOTUNE:
        raise ValueError(
            f"autotune={autotune!r} is not known; use one of {list(_primitive.AUTOTUNE)}."
        )
    if plan is not None and not isinstance(plan, str):
        raise TypeError(f"plan must be the name of a plan or None, got {plan!r}.")
    # The reference has no plans; those of an engine begin with its name.
    if plan is not None and implementation and not plan.startswith(implementation):
        raise ValueError(f"plan={plan!r} isn't one of implementation={implementation!r}.")
    return {"implementation": implementation, "plan": plan, "autotune": autotune}


def _as_qtensor(x: Any, packed: PackedConv, x_scale: Any, x_zero_point: Any) -> QTensor:
    """x with what is known of its scale; floats are quantised."""
    if isinstance(x, QTensor):
        if x_scale is not None or x_zero_point is not None:
            raise ValueError("x_scale and x_zero_point are for bare arrays, but x is a QTensor.")
        if x.zero_point is not None:
            check_zero_point("x.zero_point", x.zero_point)
        return checked("x", x)
    values = jnp.asarray(as_array("x", x))
    if packed.binding is not None:
        x_scale = packed.binding.x_scale if x_scale is None else x_scale
        x_zero_point = packed.binding.x_zero_point if x_zero_point is None else x_zero_point
    if jnp.issubdtype(values.dtype, jnp.floating):
        if x_scale is None:
            raise TypeError(
                f"x must be int8, got {values.dtype}; quantise it with quantize(x, scale), or "
                "pass x_scale=."
            )
        return quantize(values, x_scale, zero_point=x_zero_point, pad=packed.stored_channels[0])
    if x_zero_point is not None:
        check_zero_point("x_zero_point", x_zero_point)
    # Bare int8 data may have been padded beforehand.
    channels = values.shape[-1] if values.ndim else -1
    channels = packed.in_channels if channels == packed.stored_channels[0] else channels
    return QTensor(values, x_scale, x_zero_point, channels)


def _map_values(function: Any, q: QTensor) -> QTensor:
    return dataclasses.replace(q, values=function(q.values))


def _is_batched(values: jax.Array, packed: PackedConv) -> bool:
    """Whether x has an axis for N."""
    axes = packed.rank + 2
    if values.ndim not in (axes, axes - 1):
        names = {1: "N, W, C", 2: "N, H, W, C", 3: "N, D, H, W, C"}[packed.rank]
        raise ValueError(
            f"x must have {axes} axes ({names}), or all but N, got shape {list(values.shape)}."
        )
    return values.ndim == axes


def _check_x(x: QTensor, packed: PackedConv) -> jax.Array:
    """The int8 values, with the pack's stored channels."""
    values, channels = x.values, x.channels
    if values.dtype != jnp.int8:
        raise TypeError(f"x must be int8 or floats, got {values.dtype}.")
    stored, _ = packed.stored_channels
    if channels != packed.in_channels:
        raise ValueError(
            f"x has {channels} channels, but packed has weights for {packed.in_channels}."
        )
    return pad_channels(values, stored)


def _check_unsharded(name: str, values: Any, *, axes: Sequence[int]) -> None:
    """Where a mesh has explicit axes, types say what is sharded, and no sharding is invented."""
    spec = jax.typeof(values).sharding.spec
    if any(spec[axis] is not None for axis in axes):
        raise ValueError(
            f"{name} is sharded as {spec}, but only N{', H and W' if len(axes) < 2 else ''} of x "
            "may be; jax.sharding.reshard it, or split it with jax.shard_map."
        )


def _check_residual(residual: Any, batched: bool, packed: PackedConv) -> QTensor:
    residual = checked("residual", residual)
    axes = packed.rank + 1 + batched
    if residual.values.ndim != axes:
        raise ValueError(
            f"residual must have {axes} axes, as x has, got shape {list(residual.values.shape)}."
        )
    return residual


def _residual_values(
    residual: QTensor, out_shape: tuple[int, ...], packed: PackedConv
) -> jax.Array:
    """The residual as the kernel reads it, with the pack's stored channels."""
    if residual.shape != out_shape:
        raise ValueError(
            f"residual has shape {list(residual.shape)}, but the output has {list(out_shape)}."
        )
    values = pad_channels(residual.values, packed.stored_channels[1])
    return values if packed.form is None else packed.form.residual(values, packed.padding)
