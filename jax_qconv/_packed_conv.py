"""Packed weights: `PackedConv`, their geometry, and checks of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv import _spec, _zero_point
from jax_qconv._activation import Activation
from jax_qconv._binding import Binding
from jax_qconv._problem import ACCUMULATOR, Problem
from jax_qconv._space_to_depth import Blocks
from jax_qconv._subpixel import Phases

_STATIC = {"static": True}  # part of the pytree's structure, not a leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedConv:
    """Weights of a convolution, ready for the int8 kernels. Made by `prepack`.

    A pytree: weight, weight_scale, bias and binding are data, the rest is static. It can be
    an argument or a result of jitted functions, be donated, sharded and saved like any other.
    Tuples have one item for each spatial axis, of which there are one to three.

    Attributes:
        weight: ``[K, R, S, C / groups; int8]``, channels as stored (padded with zeros), groups
            merged, or recast in another `form`.
        weight_scale: ``[K or scalar; float32]``, K logical.
        bias: ``[K; float32]`` in real units, or None.
        binding: folded scales, or None until `bind`.
        in_channels: logical C.
        out_channels: logical K.
        strides: of the window; of a transposed convolution, the factor of its output's size.
        padding: ``"SAME"``, ``"VALID"`` or (before, after) pairs.
        dilation: of the kernel.
        groups: feature groups.
        merge: how many groups are stored as a dense one.
        form: how the convolution is recast: space to depth, the phases of a transposed one, or
            None for the direct form.
        format_version: of this format.
    """

    weight: Any
    weight_scale: Any
    bias: Any
    binding: Binding | None
    in_channels: int = dataclasses.field(metadata=_STATIC)
    out_channels: int = dataclasses.field(metadata=_STATIC)
    strides: _spec.Ints = dataclasses.field(metadata=_STATIC)
    padding: _spec.Padding = dataclasses.field(metadata=_STATIC)
    dilation: _spec.Ints = dataclasses.field(metadata=_STATIC)
    groups: int = dataclasses.field(default=1, metadata=_STATIC)
    merge: int = dataclasses.field(default=1, metadata=_STATIC)
    form: Blocks | Phases | None = dataclasses.field(default=None, metadata=_STATIC)
    format_version: int = dataclasses.field(default=_spec.FORMAT_VERSION, metadata=_STATIC)

    @property
    def rank(self) -> int:
        """Spatial axes: 1, 2 or 3."""
        return len(self.strides)

    @property
    def kernel_size(self) -> _spec.Ints:
        """The size of the kernel, such as (R, S)."""
        return self.form.kernel if self.form else tuple(self.weight.shape[1:-1])

    @property
    def transpose(self) -> bool:
        """Whether it is a transposed convolution."""
        return isinstance(self.form, Phases)

    @property
    def output_padding(self) -> _spec.Ints:
        """Elements added at the end of each axis; zeros but for transposed convolutions."""
        return self.form.output_padding if isinstance(self.form, Phases) else (0,) * self.rank

    @property
    def stored_groups(self) -> int:
        """Groups that the kernel sees, those of padded channels included."""
        if self.groups == self.merge:
            return 1
        return self.weight.shape[0] // (self.out_channels // self.groups * self.merge)

    @property
    def stored_channels(self) -> tuple[int, int]:
        """(C, K) as stored, padding included."""
        k, *_, c = self.weight.shape
        if self.form is not None:
            return self.form.channels, k // self.form.count
        return c * self.stored_groups, k

    @property
    def nbytes(self) -> int:
        """Bytes of all data leaves."""
        leaves = jax.tree_util.tree_leaves(self)
        return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)

    def out_size(self, size: int | Sequence[int]) -> _spec.Ints:
        """Spatial sizes of the output, such as (P, Q), for an input of ``size``, such as (H, W).

        Raises:
            ValueError: if there is no output: the kernel is larger than the padded input.
        """
        size = _spec.as_ints("size", size, rank=self.rank, minimum=0)
        if isinstance(self.form, Phases):
            out = self.form.out_size(size, self.padding)
            if min(out) < 1:
                raise ValueError(
                    f"a transposed convolution of size {size} with padding={self.padding} has no "
                    f"output left ({out}); lessen padding."
                )
            return out
        # Also where it is recast: the rule is about the convolution that was asked for.
        direct = Problem.make(
            x_shape=_two_axes(1, *size, 4),
            w_shape=_two_axes(1, *self.kernel_size, 4),
            groups=1,
            **self._placement(self.strides, self.padding, self.dilation),
            **ACCUMULATOR,
        )
        return direct.out_shape[-1 - self.rank : -1]

    def problem(self, x_shape: _spec.Ints, **fields: Any) -> Problem:
        """The call of the kernel for an input ``[N, H, W, C as stored]``.

        Args:
            x_shape: of the input.
            fields: those of `Problem` that the epilogue has.
        """
        n, *size, channels = x_shape
        self.out_size(size)  # refuses what has no output
        placed = self.strides, self.padding, self.dilation
        if self.form is not None:
            recast = functools.partial(self.form.x, padding=self.padding)
            image = jax.eval_shape(recast, jax.ShapeDtypeStruct((1, *size, channels), jnp.int8))
            pads, ones = self.form.padding(tuple(size), self.padding), (1,) * self.rank
            placed = ones, pads, ones
            _, *size, channels = image.shape
        return Problem.make(
            x_shape=_two_axes(n, *size, channels),
            w_shape=_two_axes(*self.weight.shape),
            groups=self.stored_groups,
            **self._placement(*placed),
            **fields,
        )

    def _placement(self, strides: Any, padding: Any, dilation: Any) -> dict[str, Any]:
        """As a `Problem` has it: one spatial axis becomes two."""
        if self.rank > 1:
            return {"strides": strides, "padding": padding, "dilation": dilation}
        if not isinstance(padding, str):
            padding = ((0, 0), *padding)
        return {"strides": (1, *strides), "padding": padding, "dilation": (1, *dilation)}

    def bind(
        self,
        *,
        x_scale: Any,
        x_zero_point: Any = None,
        out_scale: Any = None,
        out_zero_point: Any = None,
        residual_scale: Any = None,
        residual_zero_point: Any = None,
        residual_mode: str | None = None,
        activation: Activation | str | None = None,
        slopes: Any = None,
        out_dtype: Any = None,
        input_size: Any = None,
    ) -> PackedConv:
        """Fold scales, zero points, bias and activation bounds once, so that calls need not.

        Calls use the scales that are bound; where x comes with others, outside of `jax.jit` that
        is an error, and inside, where scales are traced, it can't be seen.

        Args:
            x_scale: ``[; float32]`` scale of the input activations.
            x_zero_point: ``[; int32]`` their zero point in [-128, 127], or None.
            out_scale: ``[; float32]`` scale of the int8 output; None for a float one.
            out_zero_point: ``[; int32]`` zero point of the int8 output, or None.
            residual_scale: ``[; float32]`` scale of the int8 residual, or None without one.
            residual_zero_point: ``[; int32]`` its zero point, or None.
            residual_mode: ``"add"`` (None means that): act(y + r); ``"add_after_activation"``:
                act(y) + r; ``"average"``: act((y + r) / 2).
            activation: fused; see `Activation`.
            slopes: ``[K; float32]`` factors of ``"prelu"`` for negative values; else None.
            out_dtype: one of int8, float32, bfloat16, float16; None means int8 where
                out_scale is given, else float32. An int32 output has nothing to bind.
            input_size: spatial sizes of the input, such as (H, W). The correction that a padded
                depthwise convolution needs for a zero point depends on it: given here, it is
                computed once, for inputs of this size; None computes it in each call.

        Returns:
            The same pack with `binding` set (an earlier one is replaced).

        Raises:
            TypeError, ValueError: on bad scales or zero points, an unknown activation, mode or
                dtype, or an out_scale that doesn't go with out_dtype.
        """
        check_format(self)
        binding = Binding.make(
            weight_scale=self.weight_scale,
            bias=self.bias,
            channels=self.out_channels,
            stored=self.stored_channels[1],
            copies=self.form.count if self.form else 1,
            x_scale=x_scale,
            x_zero_point=x_zero_point,
            out_scale=out_scale,
            out_zero_point=out_zero_point,
            residual_scale=residual_scale,
            residual_zero_point=residual_zero_point,
            residual_mode=residual_mode,
            activation=activation,
            slopes=slopes,
            out_dtype=out_dtype,
        )
        if input_size is not None:
            input_size = _spec.as_ints("input_size", input_size, rank=self.rank, minimum=1)
        if x_zero_point is not None:
            binding = self._with_offset(binding, input_size)
        return dataclasses.replace(self, binding=binding)

    def _with_offset(self, binding: Binding, size: _spec.Ints | None) -> Binding:
        """What makes up for the input's zero point, where it is known before the input is."""
        depthwise = self.stored_groups == self.stored_channels[0] > 1
        if not depthwise or self._is_unpadded():
            offset = _zero_point.per_channel(self.weight, binding.x_zero_point)
            return dataclasses.replace(binding, offset=offset)
        if size is None:
            return binding
        problem = self.problem((1, *size, self.stored_channels[0]), **ACCUMULATOR)
        weight = self.weight.reshape(problem.w_shape)
        offset = _zero_point.offset(problem, weight, binding.x_zero_point)
        return dataclasses.replace(binding, offset=offset, input_size=size)

    def _is_unpadded(self) -> bool:
        """Whether the kernel never hangs over the border, whatever the input's size."""
        if self.padding == "VALID":
            return True
        if self.padding == "SAME":
            return max(self.kernel_size) == 1
        return not any(side for pair in self.padding for side in pair)

    def __repr__(self) -> str:
        if not hasattr(self.weight, "shape"):
            leaves = f"{self.weight!r}, {self.weight_scale!r}, {self.bias!r}, {self.binding!r}"
            return f"PackedConv({leaves})"
        c, k = self.stored_channels
        stored = "" if (c, k) == (self.in_channels, self.out_channels) else f" (stored {c} -> {k})"
        kernel = "x".join(map(str, self.kernel_size))
        per = "channel" if self.weight_scale.shape else "tensor"
        notes = ""
        if self.groups > 1 and self.merge > 1:
            notes += f" ({self.merge} merged)"
        if isinstance(self.form, Phases):
            notes += f", transposed, output_padding={self.output_padding}"
        bound = ", space to depth" if isinstance(self.form, Blocks) else ""
        if self.binding is not None:
            bound += f", bound to {self.binding.out_dtype} {self.binding.activation.kind}"
        return (
            f"PackedConv({self.in_channels} -> {self.out_channels}{stored}, {kernel} kernel, "
            f"strides={self.strides}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}{notes}, scale per {per}, "
            f"bias={'no' if self.bias is None else 'yes'}{bound})"
        )


def _two_axes(first: Any, *sizes_and_last: Any) -> tuple[Any, ...]:
    """A shape with one spatial axis as one with two; others as they are."""
    return (first, 1, *sizes_and_last) if len(sizes_and_last) == 2 else (first, *sizes_and_last)


def check_format(packed: Any) -> None:
    """Refuse what isn't a pack, is of a newer format, or was changed since prepack made it."""
    if not isinstance(packed, PackedConv):
        raise TypeError(f"packed must be a PackedConv from prepack, got {type(packed).__name__}.")
    if packed.format_version > _spec.FORMAT_VERSION:
        raise ValueError(
            f"packed has format version {packed.format_version}; this jax_qconv reads up to "
            f"{_spec.FORMAT_VERSION}. Update jax_qconv, or prepack the weights again."
        )
    stored: Any = getattr(packed.weight, "shape", ())
    k = packed.out_channels
    copies = packed.form.count if packed.form else 1
    rows = stored[0] if len(stored) == packed.rank + 2 else 0
    if rows < copies * k or packed.stored_channels[0] < packed.in_channels:
        kernel = {1: "S", 2: "R, S", 3: "T, R, S"}[packed.rank]
        raise ValueError(
            f"packed.weight must be of shape [K, {kernel}, C / groups] with K >= {copies * k} and "
            f"C >= {packed.in_channels}, got {list(stored)}; stacked packs are for jax.lax.scan "
            "and jax.vmap, which take them apart."
        )
    leaves: dict[str, tuple[Any, Any, list[tuple[int, ...]]]] = {
        "weight": (packed.weight, jnp.int8, [stored]),
        "weight_scale": (packed.weight_scale, jnp.float32, [(), (k,)]),
        "bias": (packed.bias, jnp.float32, [(k,)]),
    }
    if packed.binding is not None:
        for field in dataclasses.fields(packed.binding.constants):
            shape = stored[:1] if field.name in ("m", "b", "slopes") else ()
            leaf = getattr(packed.binding.constants, field.name)
            leaves[field.name] = (leaf, jnp.float32, [shape])
    if packed.weight_scale is None:
        raise TypeError("packed.weight_scale is missing; make the pack with prepack.")
    for name, (leaf, dtype, shapes) in leaves.items():
        found = getattr(leaf, "dtype", type(leaf)), getattr(leaf, "shape", ())
        if leaf is not None and (found[0] != dtype or found[1] not in shapes):
            # Casting all floats of a tree at once is a common habit.
            raise TypeError(
                f"packed.{name} must be {jnp.dtype(dtype)}{list(shapes[-1])}, got "
                f"{found[0]}{list(found[1])}; packs must not be cast or cut, results would change."
            )
