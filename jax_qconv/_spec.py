"""What a convolution is, before any array: layouts, activations, geometry, problems.

Nothing here touches a device or an array; every rule about shapes lives here once.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

FORMAT_VERSION = 1
"""Version of the packed format; a pack of a newer one is refused."""

OUT_DTYPES = ("int8", "int32", "float32", "bfloat16", "float16")
"""Accepted output dtypes of a convolution."""

MAX_ELEMENTS = 2**31 - 1
"""Largest element count of a tensor: kernels index with 32-bit integers."""

Padding = str | tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation fused into the convolution, in real (dequantised) units.

    Make one by name (``"relu"``, ``"relu6"``, ``"leaky_relu"``, ``"none"``) wherever an
    activation is asked for, or with the constructors `clip` and `leaky_relu` below.

    Attributes:
        kind: ``"none"``, ``"relu"``, ``"clip"`` or ``"leaky_relu"``.
        lower: lower bound of ``"clip"``, in real units.
        upper: upper bound of ``"clip"``, in real units.
        slope: factor for negative values of ``"leaky_relu"``.
    """

    kind: Literal["none", "relu", "clip", "leaky_relu"] = "none"
    lower: float = -math.inf
    upper: float = math.inf
    slope: float = 0.0

    def __post_init__(self) -> None:
        kinds = ("none", "relu", "clip", "leaky_relu")
        if self.kind not in kinds:
            raise ValueError(f"activation kind {self.kind!r} is not known; use one of {kinds}.")
        for name in ("lower", "upper", "slope"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real):
                raise TypeError(
                    f"{name} of an activation must be a Python number, got {value!r}: it is "
                    "compiled in, only scales are data."
                )
            object.__setattr__(self, name, float(value))
        if not self.lower < self.upper:
            raise ValueError(f"clip needs lower < upper, got {self.lower} and {self.upper}.")
        if not 0 <= self.slope <= 2.0**126 or (self.slope == 0) == (self.kind == "leaky_relu"):
            raise ValueError(
                f"slope must be positive and finite for leaky_relu and 0 for others, got "
                f"{self.slope} for {self.kind}; a slope of 0 is 'relu'."
            )
        if self.kind != "clip" and (self.lower, self.upper) != (-math.inf, math.inf):
            raise ValueError(f"lower and upper are for clip only, got them for {self.kind}.")

    @classmethod
    def clip(cls, lower: float, upper: float) -> Activation:
        """``min(max(y, lower), upper)``, bounds in real units.

        Raises:
            TypeError: unless both are Python numbers.
            ValueError: unless ``lower < upper`` (NaN is refused too).
        """
        return cls("clip", lower=lower, upper=upper)

    @classmethod
    def leaky_relu(cls, slope: float = 0.01) -> Activation:
        """``y if y > 0 else y * slope``.

        Raises:
            TypeError: unless ``slope`` is a Python number.
            ValueError: unless it is finite and positive.
        """
        return cls("leaky_relu", slope=slope)


ACTIVATIONS = {
    "none": Activation(),
    "relu": Activation("relu"),
    "relu6": Activation.clip(0.0, 6.0),
    "leaky_relu": Activation.leaky_relu(),
}
"""The activations that have a name."""


def as_activation(activation: Activation | str | None) -> Activation:
    """Normalise the ``activation`` argument; None means none."""
    if activation is None:
        return ACTIVATIONS["none"]
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    raise ValueError(
        f"activation={activation!r} is not known; use one of {sorted(ACTIVATIONS)}, "
        "Activation.clip(lower, upper), Activation.leaky_relu(slope) or None."
    )


def as_out_dtype(out_dtype: Any) -> str:
    """Normalise the ``out_dtype`` argument to one of `OUT_DTYPES`."""
    name = getattr(out_dtype, "name", None) or getattr(out_dtype, "__name__", None) or out_dtype
    if isinstance(name, str) and name in OUT_DTYPES:
        return name
    raise ValueError(f"out_dtype={out_dtype!r} is not supported; use one of {list(OUT_DTYPES)}.")


def is_int(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is an integer of Python or numpy, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_pair(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether ``value`` is a sequence of two, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 2


def as_pair(name: str, value: int | Sequence[int], *, minimum: int) -> tuple[int, int]:
    """Normalise an int or a pair of ints (height, width), each at least ``minimum``."""
    pair = (value, value) if is_int(value) else value
    if not is_pair(pair) or not all(is_int(v) for v in pair):
        raise TypeError(f"{name} must be an int or a pair of ints (height, width), got {value!r}.")
    if min(pair) < minimum:
        raise ValueError(f"{name} must be at least {minimum} in each dimension, got {value!r}.")
    return int(pair[0]), int(pair[1])


def as_padding(padding: str | int | Sequence[Any]) -> Padding:
    """Normalise padding to ``"SAME"``, ``"VALID"`` or ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        if padding.upper() in ("SAME", "VALID"):
            return padding.upper()
        raise ValueError(
            f"padding={padding!r} is not known; use 'SAME', 'VALID', an int, a pair of ints or "
            "a pair of (before, after) pairs."
        )
    sides = (padding, padding) if is_int(padding) else padding
    if not is_pair(sides):
        raise TypeError(
            "padding must be 'SAME', 'VALID', an int, a pair of ints (height, width) or a pair "
            f"of (before, after) pairs, got {padding!r}."
        )
    top_bottom, left_right = (as_pair("padding", side, minimum=0) for side in sides)
    return top_bottom, left_right


def resolve_padding(
    padding: Padding,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Turn padding into explicit (before, after) pairs for an input of ``size`` (H, W).

    ``"SAME"`` is that of `jax.lax.padtype_to_pads`: the output has ceil(size / stride)
    elements, and an odd number of padded elements puts the extra one at the end.
    """
    if not isinstance(padding, str):
        return padding
    if padding == "VALID":
        return (0, 0), (0, 0)

    def same(n: int, k: int, stride: int, dil: int) -> tuple[int, int]:
        total = max((-(-n // stride) - 1) * stride + (k - 1) * dil + 1 - n, 0)
        return total // 2, total - total // 2

    height, width = (same(*v) for v in zip(size, kernel, strides, dilation, strict=True))
    return height, width


def padded_channels(channels: int) -> int:
    """Channels stored for ``channels`` logical ones: a pure function, equal on every machine.

    Measured on an H200 (tests/bench/results/h200/channels.json): up to 32 channels the kernels
    that take C % 4 == 0 win, best in steps of 8; above that those that read 64 at a time.
    """
    step = 4 if channels <= 4 else 8 if channels <= 32 else 64
    return -(-channels // step) * step


def check_accumulator(w_shape: Sequence[int]) -> None:
    """Raise ValueError if sums of so many products of int8 numbers could overflow int32.

    Args:
        w_shape: (K, R, S, C), channels as stored.
    """
    taps = math.prod(w_shape[1:])
    if taps * 128 * 128 >= 2**31:
        raise ValueError(
            f"weight of shape {list(w_shape)} (K, R, S, C as stored) sums {taps} products, whose "
            f"bound {taps} * 128 * 128 reaches 2**31: the int32 accumulator could overflow. "
            "Split the input channels and add the parts."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything that fixes a convolution call but its data. Hashable; built by `make`.

    Attributes:
        x_shape: (N, H, W, C), channels as stored (padded).
        w_shape: (K, R, S, C), channels as stored (padded).
        strides: (height, width).
        padding: ((top, bottom), (left, right)), zeros in the quantised domain.
        dilation: (height, width) of the kernel.
        groups: feature groups; 1 for now.
        out_dtype: one of `OUT_DTYPES`.
        activation: kind of activation; its bounds are data, its slope is not.
        slope: of ``"leaky_relu"``, else 0.
        residual: whether an int8 tensor of the output's shape is added.
    """

    x_shape: tuple[int, int, int, int]
    w_shape: tuple[int, int, int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    out_dtype: str
    activation: str
    slope: float
    residual: bool

    @classmethod
    def make(
        cls,
        *,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        strides: tuple[int, int],
        padding: Padding,
        dilation: tuple[int, int],
        groups: int,
        out_dtype: str,
        activation: Activation,
        residual: bool,
    ) -> Problem:
        """Resolve padding and check that the convolution exists.

        Raises:
            ValueError: if the kernel is larger than the padded input, or a tensor has more
                than `MAX_ELEMENTS` elements.
        """
        n, h, w, c = x_shape
        k, r, s, _ = w_shape
        pads = resolve_padding(padding, (h, w), (r, s), strides, dilation)
        problem = cls(
            x_shape=(n, h, w, c),
            w_shape=(k, r, s, c),
            strides=strides,
            padding=pads,
            dilation=dilation,
            groups=groups,
            out_dtype=out_dtype,
            activation=activation.kind,
            slope=activation.slope,
            residual=residual,
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

        def ints(name: str) -> tuple[Any, ...]:
            return tuple(map(int, fields[name].split(",")))

        top, bottom, left, right = ints("padding")
        return cls(
            x_shape=ints("x"),
            w_shape=ints("w"),
            strides=ints("strides"),
            padding=((top, bottom), (left, right)),
            dilation=ints("dilation"),
            groups=int(fields["groups"]),
            out_dtype=fields["out"],
            activation=fields["activation"],
            slope=float(fields["slope"]),
            residual=fields["residual"] == "1",
        )

    def with_batch(self, n: int) -> Problem:
        """The same convolution of another batch, checked as `make` does."""
        problem = dataclasses.replace(self, x_shape=(n, *self.x_shape[1:]))
        problem.check()
        return problem

    def check(self) -> None:
        """Raise ValueError where the kernel doesn't fit, or sums or tensors are too large."""
        check_accumulator(self.w_shape)
        for axis in range(2):
            size, kernel = self.x_shape[1 + axis], self.w_shape[1 + axis]
            pad, dilation = self.padding[axis], self.dilation[axis]
            extent = (kernel - 1) * dilation + 1
            if extent > size + sum(pad):
                raise ValueError(
                    f"kernel {('height', 'width')[axis]} {kernel} with dilation {dilation} spans "
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
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, P, Q, K), channels as stored (padded)."""
        sizes = zip(
            self.x_shape[1:3], self.w_shape[1:3], self.strides, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        p, q = ((n + sum(pad) - (k - 1) * d - 1) // st + 1 for n, k, st, pad, d in sizes)
        return self.x_shape[0], p, q, self.w_shape[0]

    @property
    def operand_names(self) -> tuple[str, ...]:
        """Operands of the call in order; which exist follows from the epilogue."""
        names = ["x", "w"]
        if self.out_dtype != "int32":
            names += ["m", "b"]
        if self.residual:
            names += ["r", "m_r"]
        if self.activation == "clip":
            names += ["lower", "upper"]
        return tuple(names)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, stored channels."""
        return math.prod(self.out_shape) * math.prod(self.w_shape[1:])

    def __str__(self) -> str:
        """The one text form: attribute of the call, key of caches, words of error messages."""
        (top, bottom), (left, right) = self.padding
        fields: dict[str, tuple[Any, ...]] = {
            "x": self.x_shape,
            "w": self.w_shape,
            "strides": self.strides,
            "padding": (top, bottom, left, right),
            "dilation": self.dilation,
            "groups": (self.groups,),
            "out": (self.out_dtype,),
            "activation": (self.activation,),
            "slope": (self.slope,),
            "residual": (int(self.residual),),
        }
        return " ".join(f"{name}={','.join(map(str, v))}" for name, v in fields.items())
