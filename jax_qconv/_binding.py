"""Scales folded into a pack: `Binding`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv import _spec
from jax_qconv._activation import Activation, as_activation
from jax_qconv._arrays import as_array, check_scale, check_zero_point
from jax_qconv._fold import RESIDUAL_MODES, Constants, Epilogue, fold


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Binding:
    """Scales folded into a pack by `PackedConv.bind`, and the scales they came from.

    Attributes:
        constants: what the epilogue multiplies, adds and clips by.
        offset: int32 added to the accumulator for the zero point of the input: ``[K]``, or
            ``[P, Q, K]`` for one input size; None without a zero point, or where each call makes
            it for the size at hand.
        x_scale, x_zero_point: ``[; float32]`` and ``[; int32]`` of the input.
        out_scale, out_zero_point: of an int8 output, or None.
        residual_scale, residual_zero_point: of the residual, or None without one.
        epilogue: what follows the accumulation.
    """

    constants: Constants
    offset: Any
    x_scale: Any
    x_zero_point: Any
    out_scale: Any
    out_zero_point: Any
    residual_scale: Any
    residual_zero_point: Any
    epilogue: Epilogue = dataclasses.field(metadata={"static": True})

    @property
    def activation(self) -> Activation:
        """That is fused."""
        return self.epilogue.activation

    @property
    def out_dtype(self) -> str:
        """Of the output."""
        return self.epilogue.out_dtype

    @classmethod
    def make(
        cls,
        *,
        weight_scale: Any,
        bias: Any,
        channels: int,
        stored: int,
        copies: int,
        x_scale: Any,
        x_zero_point: Any,
        out_scale: Any,
        out_zero_point: Any,
        residual_scale: Any,
        residual_zero_point: Any,
        residual_mode: str,
        activation: Activation | str | None,
        slopes: Any,
        out_dtype: Any,
    ) -> Binding:
        """Check and fold, without the offset; for the arguments see `PackedConv.bind`, `fold`."""
        activation = as_activation(activation)
        dtype = resolve_out_dtype(out_dtype, out_scale)
        if dtype == "int32":
            raise ValueError(
                "out_dtype='int32' is the bare accumulator and has nothing to bind; "
                "call qconv(x, packed, out_dtype='int32') with the unbound pack."
            )
        if residual_mode not in RESIDUAL_MODES:
            raise ValueError(
                f"residual_mode={residual_mode!r} is not known; use one of {list(RESIDUAL_MODES)}."
            )
        for name, zero, scale in (
            ("out_zero_point", out_zero_point, out_scale),
            ("residual_zero_point", residual_zero_point, residual_scale),
        ):
            if zero is not None and scale is None:
                raise ValueError(f"{name} was given without {name.replace('zero_point', 'scale')}.")
        scales = {
            "x_scale": check_scale("x_scale", x_scale),
            "out_scale": _given(check_scale, "out_scale", out_scale),
            "out_zero_point": _given(check_zero_point, "out_zero_point", out_zero_point),
            "residual_scale": _given(check_scale, "residual_scale", residual_scale),
            "residual_zero_point": _given(
                check_zero_point, "residual_zero_point", residual_zero_point
            ),
        }
        x_zero_point = _given(check_zero_point, "x_zero_point", x_zero_point)
        epilogue = Epilogue(
            activation=activation,
            out_dtype=dtype,
            residual_mode=None if residual_scale is None else residual_mode,
            out_zero_point=out_zero_point is not None,
            residual_zero_point=residual_zero_point is not None,
        )
        constants = fold(
            epilogue,
            weight_scale=weight_scale,
            bias=bias,
            slopes=_check_slopes(slopes, activation, channels),
            channels=channels,
            stored=stored,
            copies=copies,
            **scales,
        )
        return cls(constants, None, x_zero_point=x_zero_point, epilogue=epilogue, **scales)


def resolve_out_dtype(out_dtype: Any, out_scale: Any) -> str:
    """int8 where an out_scale is given, else float32, unless ``out_dtype`` says otherwise."""
    if out_dtype is None:
        return "float32" if out_scale is None else "int8"
    dtype = _spec.as_out_dtype(out_dtype)
    if dtype == "int8" and out_scale is None:
        raise ValueError("out_dtype='int8' needs out_scale, the scale of the output.")
    if dtype != "int8" and out_scale is not None:
        raise ValueError(f"out_scale is for int8 outputs only, got out_dtype={dtype!r}.")
    return dtype


def _given(check: Any, name: str, value: Any) -> Any:
    return None if value is None else check(name, value)


def _check_slopes(slopes: Any, activation: Activation, channels: int) -> jax.Array | None:
    if (slopes is None) == (activation.kind == "prelu"):
        raise ValueError(
            "activation='prelu' needs slopes, one for each output channel."
            if slopes is None
            else f"slopes are for activation='prelu', got them with {activation.kind!r}."
        )
    if slopes is None:
        return None
    slopes = as_array("slopes", slopes)
    if slopes.shape != (channels,) or not jnp.issubdtype(slopes.dtype, jnp.floating):
        raise ValueError(
            f"slopes must be floats of shape [{channels}], got {slopes.dtype}{list(slopes.shape)}."
        )
    return jnp.asarray(slopes, jnp.float32)
