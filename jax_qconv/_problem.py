"""`Problem`: everything that fixes a call of the kernels but its data. No arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax_qconv._spec import AXES, Ints, Padding, Pads, is_int, resolve_padding

MAX_ELEMENTS = 2**31 - 1
"""Largest element count of a tensor: kernels index with 32-bit integers."""

OFFSETS = ("none", "channel", "map")
"""What int32 is added to the accumulator for a zero point of x: nothing, ``[K]``, ``[P, Q, K]``."""


ACCUMULATOR: dict[str, Any] = {"out_dtype": "int32", "activation": "none"}
"""The fields of a `Problem` without an epilogue."""


def check_accumulator(w_shape: Sequence[int], *, zero_point: bool = False) -> None:
    """Raise ValueError if sums of so many products of int8 numbers could overflow int32.

    Args:
        w_shape: (K, R, S, C), channels as stored.
        zero_point: whether x has one: then its factor reaches 255 instead of 128.
    """
    taps, largest = math.prod(w_shape[1:]), 255 if zero_point else 128
    if taps * largest * 128 >= 2**31:
        raise ValueError(
            f"weight of shape {list(w_shape)} (K, R, S, C as stored) sums {taps} products, whose "
            f"bound {taps} * {largest} * 128 reaches 2**31: the int32 accumulator could overflow. "
            "Split the input channels and add the parts."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A convolution of two or three spatial axes and its epilogue. Hashable; built by `make`.

    Attributes:
        x_shape: (N, H, W, C) or (N, D, H, W, C), channels as stored (padded).
        w_shape: (K, R, S, C / groups) or (K, T, R, S, C / groups), channels as stored.
        strides: one for each spatial axis.
        padding: (before, after) for each spatial axis, zeros in the quantised domain.
        dilation: of the kernel, one for each spatial axis.
        groups: feature groups, as the kernel sees them.
        out_dtype: one of `OUT_DTYPES`.
        activation: kind of activation; its bounds and slopes are data, that of leaky relu isn't.
        slope: of ``"leaky_relu"``, else 0.
        residual: whether an int8 tensor of the output's shape is added.
        offset: one of `OFFSETS`.
        residual_zero_point: whether a zero point is taken from the residual.
        activation_first: whether the residual is added after the activation.
        requantize: whether the activation runs in real units, and is scaled afterwards.
    """

    x_shape: Ints
    w_shape: Ints
    strides: Ints
    padding: Pads
    dilation: Ints
    groups: int
    out_dtype: str
    activation: str
    slope: float = 0.0
    residual: bool = False
    offset: str = "none"
    residual_zero_point: bool = False
    activation_first: bool = False
    requantize: bool = False

    @classmethod
    def make(
        cls,
        *,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        strides: Ints,
        padding: Padding,
        dilation: Ints,
        **rest: Any,
    ) -> Problem:
        """Resolve padding and check that the convolution exists.

        Raises:
            ValueError: if the kernel is larger than the padded input, or a tensor has more
                than `MAX_ELEMENTS` elements.
        """
        pads = resolve_padding(padding, x_shape[1:-1], tuple(w_shape[1:-1]), strides, dilation)
        problem = cls(
            x_shape=tuple(x_shape),
            w_shape=tuple(w_shape),
            strides=strides,
            padding=pads,
            dilation=dilation,
            **rest,
        )
        problem.check()
        return problem

    @classmethod
    def parse(cls, text: str) -> Problem:
        """The opposite of `str`.

        Raises:
            KeyError, ValueError: if it isn't such a text.
        """
        fields = dict(field.split("=") for field in text.split())

        def ints(name: str) -> Ints:
            return tuple(map(int, fields[name].split(",")))

        sides = ints("padding")
        return cls(
            x_shape=ints("x"),
            w_shape=ints("w"),
            strides=ints("strides"),
            padding=tuple(zip(sides[::2], sides[1::2], strict=True)),
            dilation=ints("dilation"),
            groups=int(fields["groups"]),
            out_dtype=fields["out"],
            activation=fields["activation"],
            slope=float(fields["slope"]),
            residual=fields["residual"] == "1",
            offset=fields.get("offset", "none"),
            **{name: fields.get(name) == "1" for name in _SELDOM},
        )

    def with_batch(self, n: int) -> Problem:
        """The same convolution of another batch, checked as `make` does."""
        problem = dataclasses.replace(self, x_shape=(n, *self.x_shape[1:]))
        problem.check()
        return problem

    def check(self) -> None:
        """Raise ValueError where the kernel doesn't fit, or sums or tensors are too large."""
        check_accumulator(self.w_shape, zero_point=self.offset != "none")
        for axis, name in enumerate(AXES[self.rank]):
            size, kernel = self.x_shape[1 + axis], self.w_shape[1 + axis]
            pad, dilation = self.padding[axis], self.dilation[axis]
            extent = (kernel - 1) * dilation + 1
            if extent > size + sum(pad):
                raise ValueError(
                    f"kernel {name} {kernel} with dilation {dilation} spans "
                    f"{extent} elements, more than the padded input's {size} + {pad[0]} + "
                    f"{pad[1]}; enlarge padding or x."
                )
        tensors = {"x": self.x_shape, "weight": self.w_shape, "output": self.out_shape}
        for name, shape in tensors.items():
            # A symbolic batch (jax.export) has no number to compare.
            if all(map(is_int, shape)) and math.prod(shape) > MAX_ELEMENTS:
                raise ValueError(
                    f"{name} of shape {tuple(shape)} has {math.prod(shape)} elements, more than "
                    f"2**31 - 1; split the {'output channels' if name == 'weight' else 'batch'}."
                )

    @property
    def rank(self) -> int:
        """Spatial axes: 2 or 3."""
        return len(self.strides)

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input channel."""
        return self.groups > 1 and self.groups == self.x_shape[-1]

    @property
    def out_shape(self) -> Ints:
        """(N, P, Q, K) or (N, O, P, Q, K), channels as stored (padded)."""
        sizes = zip(
            self.x_shape[1:-1], self.w_shape[1:-1], self.strides, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        out = [(n + sum(pad) - (k - 1) * d - 1) // st + 1 for n, k, st, pad, d in sizes]
        return self.x_shape[0], *out, self.w_shape[0]

    @property
    def offset_shape(self) -> Ints:
        """Of the int32 that is added to the accumulator: () where there is none."""
        per_channel, whole = self.w_shape[:1], self.out_shape[1:]
        return {"none": (), "channel": per_channel, "map": whole}[self.offset]

    @property
    def operand_names(self) -> tuple[str, ...]:
        """Operands of the call in order; which exist follows from the epilogue."""
        present = {
            "x": True,
            "w": True,
            "z": self.offset != "none",
            "m": self.out_dtype != "int32",
            "b": self.out_dtype != "int32",
            "r": self.residual,
            "m_r": self.residual,
            "z_r": self.residual_zero_point,
            "lower": self.activation == "clip",
            "upper": self.activation == "clip",
            "slopes": self.activation == "prelu",
            "m_y": self.requantize,
            "b_y": self.requantize,
        }
        return tuple(name for name, is_present in present.items() if is_present)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """What most of its time depends on: what is read, multiplied and written."""
        shapes = self.x_shape, self.w_shape, self.out_shape
        placement = self.strides, self.dilation, self.groups
        return *shapes, *placement, self.out_dtype, self.residual

    @property
    def macs(self) -> int:
        """Multiply-accumulates, stored channels."""
        return math.prod(self.out_shape) * math.prod(self.w_shape[1:])

    def __str__(self) -> str:
        """The one text form: attribute of the call, key of caches, words of error messages."""
        fields: dict[str, tuple[Any, ...]] = {
            "x": self.x_shape,
            "w": self.w_shape,
            "strides": self.strides,
            "padding": tuple(side for pair in self.padding for side in pair),
            "dilation": self.dilation,
            "groups": (self.groups,),
            "out": (self.out_dtype,),
            "activation": (self.activation,),
            "slope": (self.slope,),
            "residual": (int(self.residual),),
        }
        # What few calls have is named only where it is there.
        if self.offset != "none":
            fields["offset"] = (self.offset,)
        fields |= {name: (1,) for name in _SELDOM if getattr(self, name)}
        return " ".join(f"{name}={','.join(map(str, v))}" for name, v in fields.items())


_SELDOM = ("residual_zero_point", "activation_first", "requantize")
