"""What the Linen and the NNX module share: fields in one form, and the pack that fits them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import serialization

from jax_qconv import _spec
from jax_qconv._activation import Activation, as_activation
from jax_qconv._binding import Binding
from jax_qconv._fold import Constants
from jax_qconv._pack import prepack
from jax_qconv._packed_conv import PackedConv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """What a module's fields ask for, and what a pack holds: the same words, to be compared."""

    features: int
    kernel_size: _spec.Ints
    strides: _spec.Ints
    padding: _spec.Padding
    kernel_dilation: _spec.Ints
    feature_group_count: int
    use_bias: bool
    activation: Activation
    residual: bool
    out_dtype: str

    @classmethod
    def of_module(cls, module: Any, *, features: int) -> Layer:
        """Check and normalise the fields of a module, which are named as in Flax's Conv."""
        check_count("features", features)
        check_count("feature_group_count", module.feature_group_count)
        for name in ("use_bias", "residual"):
            value = getattr(module, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}.")
        if features % module.feature_group_count:
            raise ValueError(
                f"feature_group_count={module.feature_group_count} must divide the "
                f"{features} output channels (features)."
            )
        size = module.kernel_size
        if _spec.is_int(size):
            size = (size,)
        if not isinstance(size, Sequence) or isinstance(size, str) or len(size) not in _spec.AXES:
            raise ValueError(
                f"kernel_size={size!r} must be an int for a 1-D kernel, (height, width) or "
                "(depth, height, width)."
            )
        rank = len(size)
        if module.input_dilation not in (None, 1, (1,) * rank):
            raise ValueError(
                f"input_dilation must be 1, got {module.input_dilation!r}; for a transposed "
                "convolution use prepack(transpose=True)."
            )
        strides, dilation = (
            1 if value is None else value for value in (module.strides, module.kernel_dilation)
        )
        return cls(
            features=features,
            kernel_size=_spec.as_ints("kernel_size", size, rank=rank, minimum=1),
            strides=_spec.as_ints("strides", strides, rank=rank, minimum=1),
            padding=_spec.as_padding(module.padding, rank=rank),
            kernel_dilation=_spec.as_ints("kernel_dilation", dilation, rank=rank, minimum=1),
            feature_group_count=module.feature_group_count,
            use_bias=module.use_bias,
            activation=as_activation(module.activation),
            residual=module.residual,
            out_dtype=_spec.as_out_dtype(module.out_dtype),
        )

    @classmethod
    def of_pack(cls, packed: PackedConv) -> Layer:
        """The same words about a bound pack."""
        if packed.binding is None:
            raise ValueError("the pack is not bound; a module holds one made by packed.bind(...).")
        return cls(
            features=packed.out_channels,
            kernel_size=packed.kernel_size,
            strides=packed.strides,
            padding=packed.padding,
            kernel_dilation=packed.dilation,
            feature_group_count=packed.groups,
            use_bias=packed.bias is not None,
            activation=packed.binding.activation,
            residual=packed.binding.residual_scale is not None,
            out_dtype=packed.binding.out_dtype,
        )

    def check(self, packed: PackedConv) -> PackedConv:
        """Return ``packed`` if it is what the fields ask for.

        Raises:
            ValueError: naming what differs. Nothing of the module may be silently ignored.
        """
        found = Layer.of_pack(packed)
        differing = [
            f"{field.name}={getattr(self, field.name)!r}, but its weights were packed with "
            f"{getattr(found, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(found, field.name)
        ]
        if differing:
            raise ValueError(
                f"this QConv has {'; '.join(differing)}. Change the field, or pack again with "
                "from_float."
            )
        return packed

    def pack(
        self,
        kernel: Any,
        bias: Any,
        *,
        x_scale: Any,
        out_scale: Any,
        residual_scale: Any,
        x_zero_point: Any = None,
        out_zero_point: Any = None,
        residual_zero_point: Any = None,
        slopes: Any = None,
    ) -> PackedConv:
        """Pack and bind ``[R, S, C, features; float]`` and ``[features; float]`` or None."""
        if self.residual != (residual_scale is not None):
            raise ValueError(
                f"residual={self.residual}, but residual_scale={residual_scale}: a QConv takes "
                "a residual if and only if it is packed with that residual's scale."
            )
        packed = prepack(
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            groups=self.feature_group_count,
        )
        return self.check(
            packed.bind(
                x_scale=x_scale,
                out_scale=out_scale,
                residual_scale=residual_scale,
                x_zero_point=x_zero_point,
                out_zero_point=out_zero_point,
                residual_zero_point=residual_zero_point,
                activation=self.activation,
                slopes=slopes,
                out_dtype=self.out_dtype,
            )
        )

    def zeros(
        self,
        in_features: int,
        *,
        x_scale: Any = 1.0,
        residual_scale: Any = 1.0,
        x_zero_point: Any = None,
        residual_zero_point: Any = None,
    ) -> PackedConv:
        """A pack of zero weights: the shapes, dtypes and structure that a checkpoint has.

        Without a zero point of the output, of which the fields say nothing.
        """
        groups = self.feature_group_count
        if in_features % groups:
            raise ValueError(
                f"feature_group_count={groups} must divide the {in_features} input channels."
            )
        return self.pack(
            jnp.zeros((*self.kernel_size, in_features // groups, self.features)),
            jnp.zeros(self.features) if self.use_bias else None,
            x_scale=x_scale,
            out_scale=1.0 if self.out_dtype == "int8" else None,
            residual_scale=residual_scale if self.residual else None,
            x_zero_point=x_zero_point,
            residual_zero_point=residual_zero_point,
            slopes=jnp.zeros(self.features) if self.activation.kind == "prelu" else None,
        )


def check_count(name: str, value: Any) -> None:
    """Refuse what is no int from 1 on."""
    if not _spec.is_int(value):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}.")


def _data(node: Any) -> dict[str, Any]:
    """The data fields of a pytree dataclass that hold something."""
    return {
        field.name: getattr(node, field.name)
        for field in dataclasses.fields(node)
        if not field.metadata.get("static") and getattr(node, field.name) is not None
    }


def _to_state_dict(node: Any) -> dict[str, Any]:
    return {name: serialization.to_state_dict(value) for name, value in _data(node).items()}


def _from_state_dict(target: Any, state: dict[str, Any]) -> Any:
    expected = _data(target)
    if state.keys() != expected.keys():
        raise ValueError(
            f"the state of a {type(target).__name__} at {serialization.current_path()} has "
            f"{sorted(state)}, but the target has {sorted(expected)}; restore into a module "
            "with the fields of the one that was saved."
        )
    restored = {}
    for name, value in expected.items():
        restored[name] = serialization.from_state_dict(value, state[name], name=name)
        found, wanted = (getattr(v, "shape", None) for v in (restored[name], value))
        if found != wanted:
            raise ValueError(
                f"{name} of a {type(target).__name__} at {serialization.current_path()} has shape "
                f"{found}, but the target's is {wanted}."
            )
    return dataclasses.replace(target, **restored)


# To Flax's serialisation a pack is a nested dict of arrays; its static fields are the module's.
for _node in (PackedConv, Binding, Constants):
    serialization.register_serialization_state(_node, _to_state_dict, _from_state_dict)
