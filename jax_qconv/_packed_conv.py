"""Packed weights: `PackedConv`, what it is bound to, and checks of both."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv import _spec
from jax_qconv._arrays import check_scale
from jax_qconv._fold import Constants, fold
from jax_qconv._space_to_depth import Blocks

_STATIC = {"static": True}  # part of the pytree's structure, not a leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Binding:
    """Scales folded into a pack by `PackedConv.bind`, and the scales they came from.

    Attributes:
        constants: what the epilogue multiplies, adds and clips by.
        x_scale: ``[; float32]`` of the input.
        out_scale: ``[; float32]`` of an int8 output, or None.
        residual_scale: ``[; float32]`` of the residual, or None without one.
        activation: that is fused.
        out_dtype: of the output.
    """

    constants: Constants
    x_scale: Any
    out_scale: Any
    residual_scale: Any
    activation: _spec.Activation = dataclasses.field(metadata=_STATIC)
    out_dtype: str = dataclasses.field(metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedConv:
    """Weights of a convolution, ready for the int8 kernels. Made by `prepack`.

    A pytree: weight, weight_scale, bias and binding are data, the rest is static. It can be
    an argument or a result of jitted functions, be donated, sharded and saved like any other.

    Attributes:
        weight: ``[K, R, S, C; int8]``, channels as stored (padded with zeros), or cut into
            `blocks`.
        weight_scale: ``[K or scalar; float32]``, K logical.
        bias: ``[K; float32]`` in real units, or None.
        binding: folded scales, or None until `bind`.
        in_channels: logical C.
        out_channels: logical K.
        strides: (height, width).
        padding: ``"SAME"``, ``"VALID"`` or ((top, bottom), (left, right)).
        dilation: (height, width) of the kernel.
        groups: feature groups; 1 for now.
        blocks: how the weights are cut for space to depth, or None for the direct form.
        format_version: of this format.
    """

    weight: Any
    weight_scale: Any
    bias: Any
    binding: Binding | None
    in_channels: int = dataclasses.field(metadata=_STATIC)
    out_channels: int = dataclasses.field(metadata=_STATIC)
    strides: tuple[int, int] = dataclasses.field(metadata=_STATIC)
    padding: _spec.Padding = dataclasses.field(metadata=_STATIC)
    dilation: tuple[int, int] = dataclasses.field(metadata=_STATIC)
    groups: int = dataclasses.field(metadata=_STATIC)
    blocks: Blocks | None = dataclasses.field(default=None, metadata=_STATIC)
    format_version: int = dataclasses.field(default=_spec.FORMAT_VERSION, metadata=_STATIC)

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(R, S): height and width of the kernel."""
        return self.blocks.kernel if self.blocks else tuple(self.weight.shape[1:3])

    @property
    def stored_channels(self) -> tuple[int, int]:
        """(C, K) as stored, padding included."""
        k, _, _, c = self.weight.shape
        return (self.blocks.channels, k // self.blocks.count) if self.blocks else (c, k)

    @property
    def nbytes(self) -> int:
        """Bytes of all data leaves."""
        leaves = jax.tree_util.tree_leaves(self)
        return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)

    def bind(
        self,
        *,
        x_scale: Any,
        out_scale: Any = None,
        residual_scale: Any = None,
        activation: _spec.Activation | str | None = None,
        out_dtype: Any = None,
    ) -> PackedConv:
        """Fold scales, bias and activation bounds once, so that calls need not.

        Args:
            x_scale: ``[; float32]`` scale of the input activations.
            out_scale: ``[; float32]`` scale of the int8 output; None for a float one.
            residual_scale: ``[; float32]`` scale of the int8 residual, or None without one.
            activation: fused after the addition of the residual; see `Activation`.
            out_dtype: one of int8, float32, bfloat16, float16; None means int8 where
                out_scale is given, else float32. An int32 output has nothing to bind.

        Returns:
            The same pack with `binding` set (an earlier one is replaced).

        Raises:
            TypeError, ValueError: on bad scales, an unknown activation or dtype, or an
                out_scale that doesn't go with out_dtype.
        """
        check_format(self)
        activation = _spec.as_activation(activation)
        dtype = resolve_out_dtype(out_dtype, out_scale)
        if dtype == "int32":
            raise ValueError(
                "out_dtype='int32' is the bare accumulator and has nothing to bind; "
                "call qconv(x, packed, out_dtype='int32') with the unbound pack."
            )
        x_scale = check_scale("x_scale", x_scale)
        out_scale = None if out_scale is None else check_scale("out_scale", out_scale)
        if residual_scale is not None:
            residual_scale = check_scale("residual_scale", residual_scale)
        constants = fold(
            weight_scale=self.weight_scale,
            bias=self.bias,
            x_scale=x_scale,
            out_scale=out_scale,
            residual_scale=residual_scale,
            activation=activation,
            channels=self.out_channels,
            stored=self.stored_channels[1],
            copies=self.blocks.count if self.blocks else 1,
        )
        binding = Binding(constants, x_scale, out_scale, residual_scale, activation, dtype)
        return dataclasses.replace(self, binding=binding)

    def __repr__(self) -> str:
        if not hasattr(self.weight, "shape"):
            leaves = f"{self.weight!r}, {self.weight_scale!r}, {self.bias!r}, {self.binding!r}"
            return f"PackedConv({leaves})"
        c, k = self.stored_channels
        stored = "" if (c, k) == (self.in_channels, self.out_channels) else f" (stored {c} -> {k})"
        kernel = "x".join(map(str, self.kernel_size))
        per = "channel" if self.weight_scale.shape else "tensor"
        bound = ""
        if self.binding is not None:
            bound = f", bound to {self.binding.out_dtype} {self.binding.activation.kind}"
        return (
            f"PackedConv({self.in_channels} -> {self.out_channels}{stored}, {kernel} kernel, "
            f"strides={self.strides}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, scale per {per}, "
            f"bias={'no' if self.bias is None else 'yes'}"
            f"{', space to depth' if self.blocks else ''}{bound})"
        )


def check_format(packed: Any) -> None:
    """Refuse what isn't a pack, is of a newer format, or was changed since prepack made it."""
    if not isinstance(packed, PackedConv):
        raise TypeError(f"packed must be a PackedConv from prepack, got {type(packed).__name__}.")
    if packed.format_version > _spec.FORMAT_VERSION:
        raise ValueError(
            f"packed has format version {packed.format_version}; this jax_qconv reads up to "
            f"{_spec.FORMAT_VERSION}. Update jax_qconv, or prepack the weights again."
        )
    stored, k = getattr(packed.weight, "shape", ()), packed.out_channels
    copies = packed.blocks.count if packed.blocks else 1
    if len(stored) != 4 or stored[0] < copies * k or stored[3] < packed.in_channels:
        raise ValueError(
            f"packed.weight must be of shape [K, R, S, C] with K >= {copies * k} and C >= "
            f"{packed.in_channels}, got {list(stored)}; stacked packs are for jax.lax.scan and "
            "jax.vmap, which take them apart."
        )
    leaves: dict[str, tuple[Any, Any, list[tuple[int, ...]]]] = {
        "weight": (packed.weight, jnp.int8, [stored]),
        "weight_scale": (packed.weight_scale, jnp.float32, [(), (k,)]),
        "bias": (packed.bias, jnp.float32, [(k,)]),
    }
    if packed.binding is not None:
        constants = packed.binding.constants
        for name, shape in {
            "m": stored[:1],
            "b": stored[:1],
            "m_r": (),
            "lower": (),
            "upper": (),
        }.items():
            leaves[name] = (getattr(constants, name), jnp.float32, [shape])
    for name, (leaf, dtype, shapes) in leaves.items():
        if leaf is not None and (leaf.dtype != dtype or leaf.shape not in shapes):
            # Casting all floats of a tree at once is a common habit.
            raise TypeError(
                f"packed.{name} must be {jnp.dtype(dtype)}{list(shapes[-1])}, got "
                f"{leaf.dtype}{list(leaf.shape)}; packs must not be cast or cut, results would "
                "change."
            )


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
