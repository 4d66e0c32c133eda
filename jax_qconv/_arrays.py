"""Small rules about arrays that the rest shares: what counts as one, which scales are good."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

INTEGER_OP_GRADIENT = (
    "{op} works on integers and has no gradient. Train the float model and quantise it "
    "afterwards, or put jax.lax.stop_gradient around the inputs that need no gradient."
)


def is_concrete(value: Any) -> bool:
    """Whether ``value`` can be read here and now: isn't traced, nor in part on other hosts."""
    if isinstance(value, Tracer):
        return False
    return not isinstance(value, jax.Array) or (
        value.is_fully_addressable or value.is_fully_replicated
    )


def check_scale(name: str, scale: Any, *, length: int | None = None) -> jax.Array:
    """Return ``scale`` as float32, of shape [] or, where ``length`` is given, [length] too.

    Raises:
        TypeError: if it isn't a real number or float array.
        ValueError: on another shape, or, when concrete, unless positive and finite.
    """
    scale = as_array(name, scale)
    if not (jnp.issubdtype(scale.dtype, jnp.floating) or jnp.issubdtype(scale.dtype, jnp.integer)):
        raise TypeError(f"{name} must be of a float dtype, got {scale.dtype}.")
    allowed = [()] if length is None else [(), (length,)]
    if scale.shape not in allowed:
        want = "a scalar" if length is None else f"a scalar or of shape [{length}]"
        raise ValueError(f"{name} must be {want}, got shape {list(scale.shape)}.")
    if is_concrete(scale):
        values = np.asarray(scale).astype(np.float64)
        bad = ~((values >= 2.0**-126) & (values <= 2.0**126))
        if bad.any():
            raise ValueError(
                f"{name} must be positive and finite, within [2**-126, 2**126] where it and its "
                f"reciprocal are normal in float32; got {values[bad].flat[0]}."
            )
    return _known(scale, jnp.float32)


def check_zero_point(name: str, zero_point: Any) -> jax.Array:
    """Return ``zero_point`` as an int32 scalar.

    Raises:
        TypeError: if it isn't a scalar of an integer dtype.
        ValueError: outside of [-128, 127], when concrete.
    """
    zero_point = as_array(name, zero_point)
    if not jnp.issubdtype(zero_point.dtype, jnp.integer) or zero_point.shape:
        raise TypeError(
            f"{name} must be an integer scalar or None, got "
            f"{zero_point.dtype} of shape {list(zero_point.shape)}."
        )
    if is_concrete(zero_point) and not -128 <= int(zero_point) <= 127:
        raise ValueError(f"{name} must lie in [-128, 127], got {int(zero_point)}.")
    return _known(zero_point, jnp.int32)


def _known(value: Any, dtype: Any) -> Any:
    """``value`` as an array of JAX; while tracing, a number that is known stays one of numpy's.

    One that is traced, and of the dtype, stays the same object: there is no other way to tell
    that two are equal.
    """
    if isinstance(value, Tracer) and value.dtype == dtype:
        return value
    array = jnp.asarray(value, dtype)
    is_lost = isinstance(array, Tracer) and is_concrete(value)
    return np.asarray(value).astype(dtype) if is_lost else array


def as_array(name: str, value: Any) -> Any:
    """``value`` as an array of jax or numpy, or a TypeError that names the argument."""
    if isinstance(value, jax.Array):
        return value
    try:
        if value is None or np.asarray(value).dtype.kind in "OSU":
            raise TypeError("no numbers in it")
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}.") from error


def reciprocal(scale: jax.Array) -> jax.Array:
    """1 / scale ``[float32]``, through float64: float32 division isn't IEEE on every device."""
    with jax.enable_x64(True):
        return (1.0 / scale.astype(jnp.float64)).astype(jnp.float32)


def undifferentiable(value: jax.Array, op: str) -> jax.Array:
    """``value`` itself; raises where it is differentiated, as rounding would give zeros."""
    return _identity(value, op)  # type: ignore[return-value]


def guard(values: jax.Array, scale: Any, op: str) -> jax.Array:
    """``values`` themselves; raises where they are used and ``scale`` is differentiated.

    In place of `undifferentiable` where the scale must stay the same object.
    """
    return _first(values, scale, op) if isinstance(scale, Tracer) else values


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _first(values: jax.Array, scale: jax.Array, op: str) -> jax.Array:
    del scale, op
    return values


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _identity(value: jax.Array, op: str) -> jax.Array:
    del op
    return value


@_first.defjvp
@_identity.defjvp
def _refuse(op: str, primals: Any, tangents: Any) -> Any:
    raise TypeError(INTEGER_OP_GRADIENT.format(op=op))


def explicit_sharding(values: jax.Array) -> Any:
    """How the type of ``values`` says that they are sharded (on explicit axes), or None."""
    sharding = jax.typeof(values).sharding
    return sharding if any(axis is not None for axis in sharding.spec) else None


def reshape_images(values: jax.Array, shape: Sequence[int]) -> jax.Array:
    """``values`` in another shape that begins with N too, which stays sharded as it is."""
    sharding = explicit_sharding(values)
    if sharding is None:
        return values.reshape(shape)
    # JAX infers no sharding where several axes change.
    spec = jax.sharding.PartitionSpec(sharding.spec[0], *[None] * (len(shape) - 1))
    return jax.lax.reshape(values, shape, out_sharding=sharding.update(spec=spec))


def pad_channels(values: jax.Array, stored: int) -> jax.Array:
    """Zero-pad or slice the last axis to ``stored`` elements; no operation if equal."""
    if values.shape[-1] > stored:
        return values[..., :stored]
    if values.shape[-1] == stored:
        return values
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, stored - values.shape[-1])])
