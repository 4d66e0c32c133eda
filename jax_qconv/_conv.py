"""`qconv`: the int8 convolution on packed weights, with its fused epilogue."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _primitive, _spec
from jax_qconv._arrays import as_array, check_scale, is_concrete, pad_channels
from jax_qconv._packed_conv import Binding, PackedConv, check_format, resolve_out_dtype
from jax_qconv._quantize import QTensor
from jax_qconv._space_to_depth import Blocks


def qconv(
    x: QTensor | jax.Array,
    packed: PackedConv,
    *,
    residual: QTensor | None = None,
    out_scale: Any = None,
    out_dtype: Any = None,
    activation: _spec.Activation | str | None = None,
    implementation: str | None = None,
    plan: str | None = None,
    autotune: str = "cached",
) -> QTensor | jax.Array:
    """2-D int8 convolution with scale, bias, residual, activation and rounding in one kernel.

    Numerics, the same bytes on every backend and with every plan: the int32 accumulator is
    exact; y = act(fma(r, m_r, fma(float32(acc), m[k], b[k]))) in float32, where
    m = x_scale * weight_scale / out_scale, b = bias / out_scale, m_r = residual_scale /
    out_scale (out_scale = 1 for float outputs), each computed in float64 and rounded once.
    An int8 output rounds half to even and saturates to [-128, 127]; float outputs round y half
    to even. int32 is the bare accumulator.

    Args:
        x: ``[N, H, W, C; int8]`` as a `QTensor` with zero_point None; or a bare int8 array
            where its scale is known (a bound pack) or not needed (int32 output), with or
            without the pack's padded channels.
        packed: weights and geometry from `prepack`. A bound one (`PackedConv.bind`) brings
            scales, activation and output dtype along; for an unbound one they are folded
            here, inside the program.
        residual: ``[N, P, Q, K; int8]`` added before the activation, or None.
        out_scale: ``[; float32]`` scale of an int8 output.
        out_dtype: ``"int8"``, ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int32"``;
            None means int8 where out_scale is given (or bound), else float32.
        activation: ``"relu"``, ``"relu6"``, ``"leaky_relu"``, an `Activation`, or None.
        implementation: ``"cudnn"`` or ``"reference"``, which is then used or refused; None
            means cuDNN on CUDA and the reference elsewhere.
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
    if plan is not None and implementation == "reference":
        raise ValueError(f"plan={plan!r} names a cuDNN plan, but implementation='reference'.")
    values, x_scale = _check_x(x, packed)
    _check_unsharded("x", values, axes=(3,))
    _check_unsharded("packed", packed.weight, axes=(0, 1, 2, 3))
    binding, activation, dtype = _resolve_epilogue(
        packed, x_scale, residual, out_scale, out_dtype, activation
    )
    stored_c, stored_k = packed.stored_channels
    problem = _spec.Problem.make(
        x_shape=values.shape,
        w_shape=(stored_k, *packed.kernel_size, stored_c),
        strides=packed.strides,
        padding=packed.padding,
        dilation=packed.dilation,
        groups=packed.groups,
        out_dtype=dtype,
        activation=activation,
        residual=residual is not None,
    )
    operands = {"x": values, "w": packed.weight}
    if binding is not None:
        constants = binding.constants
        operands |= {name: getattr(constants, name) for name in ("m", "b", "m_r", "lower", "upper")}
    if residual is not None:
        operands["r"] = _check_residual(residual, problem, packed.out_channels)
    engine = {"implementation": implementation, "plan": plan, "autotune": autotune}
    if packed.blocks is None:
        out = _bind(problem, operands, **engine)
    else:
        out = _bind_blocks(packed.blocks, problem, operands, **engine)
    if binding is not None and dtype == "int8":
        return QTensor(out, binding.out_scale, None, packed.out_channels)
    return out[..., : packed.out_channels]


def _bind(problem: _spec.Problem, operands: dict[str, Any], **engine: Any) -> jax.Array:
    return _primitive.bind(problem, tuple(operands[n] for n in problem.operand_names), **engine)


def _bind_blocks(
    blocks: Blocks, problem: _spec.Problem, operands: dict[str, Any], **engine: Any
) -> jax.Array:
    """The convolution of blocks, its operands cut and its output put together again."""
    out_size = problem.out_shape[1:3]
    cut = operands | {"x": blocks.x(operands["x"], problem.padding, out_size)}
    if problem.residual:
        cut["r"] = blocks.residual(operands["r"])
    inner = dataclasses.replace(
        problem,
        x_shape=cut["x"].shape,
        w_shape=cut["w"].shape,
        strides=(1, 1),
        padding=((0, 0), (0, 0)),
    )
    inner.check()
    return blocks.out(_bind(inner, cut, **engine), out_size)


def _check_x(x: Any, packed: PackedConv) -> tuple[jax.Array, Any]:
    """The int8 values, with the pack's stored channels, and their scale (None if unknown)."""
    values, scale, channels = x, None, None
    if isinstance(x, QTensor):
        _check_symmetric("x", x)
        values, scale, channels = x.values, x.scale, x.channels
    values = jnp.asarray(as_array("x", values))
    if values.dtype != jnp.int8:
        is_float = jnp.issubdtype(values.dtype, jnp.floating)
        remedy = "; quantise it with quantize(x, scale)" if is_float else ""
        raise TypeError(f"x must be int8, got {values.dtype}{remedy}.")
    if values.ndim != 4:
        raise ValueError(f"x must have 4 axes (N, H, W, C), got shape {list(values.shape)}.")
    stored, _ = packed.stored_channels
    if channels is None:
        channels = packed.in_channels if values.shape[3] == stored else values.shape[3]
    _check_stored("x", channels, values)
    if channels != packed.in_channels:
        raise ValueError(
            f"x has {channels} channels, but packed has weights for {packed.in_channels}."
        )
    return pad_channels(values, stored), scale


def _check_stored(name: str, channels: int, values: jax.Array) -> None:
    if channels > values.shape[-1]:
        raise ValueError(f"{name} says it has {channels} channels, but stores {values.shape[-1]}.")


def _check_unsharded(name: str, values: Any, *, axes: tuple[int, ...]) -> None:
    """Where a mesh has explicit axes, types say what is sharded, and no sharding is invented."""
    spec = jax.typeof(values).sharding.spec
    if any(spec[axis] is not None for axis in axes):
        raise ValueError(
            f"{name} is sharded as {spec}, but only N, H and W of x may be; jax.sharding.reshard "
            "it, or split the channels with jax.shard_map."
        )


def _check_symmetric(name: str, q: QTensor) -> None:
    if q.zero_point is not None:
        raise ValueError(
            f"{name} has a zero_point; this version convolves symmetric data only. Quantise it "
            "with zero_point=None."
        )


def _check_residual(residual: Any, problem: _spec.Problem, channels: int) -> jax.Array:
    values = jnp.asarray(as_array("residual", residual.values))
    if values.dtype != jnp.int8:
        raise TypeError(f"residual must hold int8 values, got {values.dtype}.")
    expected = (*problem.out_shape[:3], channels)
    if residual.shape != expected:
        raise ValueError(
            f"residual has shape {list(residual.shape)}, but the output has {list(expected)}."
        )
    _check_stored("residual", channels, values)
    return pad_channels(values, problem.out_shape[3])


def _resolve_epilogue(
    packed: PackedConv,
    x_scale: Any,
    residual: Any,
    out_scale: Any,
    out_dtype: Any,
    activation: Any,
) -> tuple[Binding | None, _spec.Activation, str]:
    """The folded scales (None for int32), the activation and the output dtype of the call."""
    if residual is not None:
        if not isinstance(residual, QTensor):
            raise TypeError(f"residual must be a QTensor or None, got {type(residual).__name__}.")
        _check_symmetric("residual", residual)
    if packed.binding is not None:
        binding = packed.binding
        _check_binding(binding, x_scale, residual, out_scale, out_dtype, activation)
        return binding, binding.activation, binding.out_dtype
    activation = _spec.as_activation(activation)
    dtype = resolve_out_dtype(out_dtype, out_scale)
    if dtype == "int32":
        extras = {
            "packed has a bias": packed.bias is not None,
            "a residual was given": residual is not None,
            f"activation is {activation.kind!r}": activation.kind != "none",
        }
        found = [text for text, present in extras.items() if present]
        if found:
            raise ValueError(
                f"out_dtype='int32' is the bare accumulator, but {' and '.join(found)}; use "
                "out_dtype='float32' for an output with an epilogue."
            )
        return None, activation, dtype
    if x_scale is None:
        raise TypeError(
            f"x is a bare int8 array, but for {dtype} outputs its scale is needed; pass "
            "QTensor(x, scale), or a pack bound with packed.bind(x_scale=...)."
        )
    bound = packed.bind(
        x_scale=x_scale,
        out_scale=out_scale,
        residual_scale=None if residual is None else check_scale("residual_scale", residual.scale),
        activation=activation,
        out_dtype=dtype,
    )
    return bound.binding, activation, dtype


def _check_binding(
    binding: Binding,
    x_scale: Any,
    residual: QTensor | None,
    out_scale: Any,
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
    wanted = {
        "out_dtype": (
            None if out_dtype is None else _spec.as_out_dtype(out_dtype),
            binding.out_dtype,
        ),
        "activation": (
            None if activation is None else _spec.as_activation(activation),
            binding.activation,
        ),
    }
    for name, (given, bound) in wanted.items():
        if given is not None and given != bound:
            raise ValueError(f"packed was bound to {name}={bound}, but {name}={given} was given.")
    if out_scale is not None and binding.out_scale is None:
        raise ValueError(f"packed was bound to {binding.out_dtype} outputs, without an out_scale.")
    scales = {
        "x's scale": (x_scale, binding.x_scale),
        "out_scale": (out_scale, binding.out_scale),
        "residual's scale": (None if residual is None else residual.scale, binding.residual_scale),
    }
    for name, (given, bound) in scales.items():
        if given is None or given is bound:
            continue
        check_scale(name, given)
        known = is_concrete(given) and is_concrete(bound)
        if known and np.asarray(given).astype(np.float32) != np.asarray(bound):
            raise ValueError(f"packed was bound to another {name}: {bound}, but got {given}.")
