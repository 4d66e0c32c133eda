"""Activations that can be fused into a convolution."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Literal, get_args

Kind = Literal[
    "none",
    "relu",
    "clip",
    "leaky_relu",
    "prelu",
    "hard_sigmoid",
    "hard_swish",
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "gelu_tanh",
]
KINDS: tuple[str, ...] = get_args(Kind)
"""All kinds of activation. Their formulas are in `jax_qconv._reference.activate`."""

SCALE_FREE = ("none", "relu", "clip", "leaky_relu", "prelu")
"""Kinds with act(y / s) = act(y) / s, bounds divided too: they run in steps of the output."""

APPROXIMATE = ("sigmoid", "tanh", "silu", "gelu", "gelu_tanh")
"""Kinds that engines compute each in their own way: the only outputs that may differ between them,
by a step of int8 where the exact value is close to a tie."""


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation fused into the convolution, in real (dequantised) units.

    Make one by name (``"relu"``, ``"relu6"``, ``"silu"`` and so on) wherever an activation is
    asked for, or with the constructors `clip` and `leaky_relu` below.

    Attributes:
        kind: ``"none"``, ``"relu"``, ``"clip"``, ``"leaky_relu"``, ``"prelu"`` (with slopes as
            data), ``"hard_sigmoid"``, ``"hard_swish"``, ``"sigmoid"``, ``"tanh"``, ``"silu"``,
            ``"gelu"`` (exact, by erf) or ``"gelu_tanh"`` (its approximation by tanh).
        lower: lower bound of ``"clip"``, in real units.
        upper: upper bound of ``"clip"``, in real units.
        slope: factor for negative values of ``"leaky_relu"``.
    """

    kind: Kind = "none"
    lower: float = -math.inf
    upper: float = math.inf
    slope: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"activation kind {self.kind!r} is not known; use one of {KINDS}.")
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
    **{kind: Activation(kind) for kind in get_args(Kind) if kind not in ("clip", "leaky_relu")},
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
