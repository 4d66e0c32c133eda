"""Rules: what is done otherwise for single layers of a network."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax_qconv._layer_info import LayerInfo
from jax_qconv._observers import MinMax, Observer, as_observer
from jax_qconv._operands import FLOATS
from jax_qconv._weights import check_rounding


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is done otherwise for the layers that fit a pattern and a predicate.

    A layer is named by the path of its weights among the parameters, such as
    ``"params/Conv_0"``; one that is used several times is one layer. Later rules go before earlier
    ones; what is None is left to others.

    Attributes:
        pattern: of names, such as ``"params/Conv_0"`` or ``"*/Dense_*"`` (of `fnmatch`).
        where: whether the rule is for a layer, such as
            ``lambda layer: layer.first or layer.groups > 1``; see `LayerInfo`.
        skip: whether to leave the layer real, in the dtype that the function has.
        per_channel: whether each output channel has its own weight scale.
        weight_observer: of the weights.
        rounding: of the weights.
        bias_correction: whether its bias makes up for what rounding its weights does.
        observer: of the values that the layer makes.
        asymmetric: whether these get a zero point.
        out_dtype: float32, bfloat16 or float16, to write these as floats instead of int8.
    """

    pattern: str = "*"
    where: Callable[[LayerInfo], bool] | None = None
    skip: bool | None = None
    per_channel: bool | None = None
    weight_observer: Observer | str | None = None
    rounding: str | None = None
    bias_correction: bool | None = None
    observer: Observer | str | None = None
    asymmetric: bool | None = None
    out_dtype: Any = None

    def fits(self, layer: LayerInfo) -> bool:
        """Whether it is for a layer."""
        named = fnmatch.fnmatchcase(layer.name, self.pattern)
        return named and (self.where is None or bool(self.where(layer)))

    def check(self) -> None:
        """Raise TypeError or ValueError where it says what can't be done."""
        if not isinstance(self.pattern, str):
            raise TypeError(f"pattern of a Rule must be a text, got {self.pattern!r}.")
        if self.where is not None and not callable(self.where):
            raise TypeError(f"where of a Rule must be a function, got {self.where!r}.")
        for field in ("skip", "per_channel", "bias_correction", "asymmetric"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{field} of a Rule must be True, False or None, got {value!r}.")
        for observer in (self.observer, self.weight_observer):
            if observer is not None:
                as_observer(observer)
        if self.rounding is not None:
            check_rounding(self.rounding)
        if self.out_dtype is not None and self.out_dtype not in FLOATS:
            raise ValueError(
                "out_dtype of a Rule must be float32, bfloat16, float16 or None, got "
                f"{self.out_dtype!r}."
            )


@dataclasses.dataclass(frozen=True)
class RuleBook:
    """All rules.

    Attributes:
        defaults: what holds where no rule says otherwise; the first fits every layer.
        rules: the user's.
    """

    defaults: tuple[Rule, ...]
    rules: tuple[Rule, ...]

    @classmethod
    def make(cls, rules: Sequence[Rule], **defaults: Any) -> RuleBook:
        """Checked rules, and defaults for the fields of `Rule`."""
        if isinstance(rules, Rule) or not isinstance(rules, Sequence):
            raise TypeError(f"rules must be a sequence of Rule, got {rules!r}; pass a list.")
        for rule in rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"rules must hold Rule, got {rule!r}.")
            rule.check()
        first = Rule(skip=False, **defaults)
        first.check()
        # What goes in is bounded, as pixels are, and often lies on a grid that int8 can have.
        inputs = Rule(where=lambda layer: layer.kind == "input", observer=MinMax())
        return cls((first, inputs), tuple(rules))

    def skips(self, layer: LayerInfo) -> bool:
        """Whether a layer stays real."""
        return self._last(layer, "skip")

    def per_channel(self, layer: LayerInfo) -> bool:
        """Whether its weights have a scale for each output channel."""
        return self._last(layer, "per_channel")

    def weight_observer(self, layer: LayerInfo) -> Observer:
        """Of its weights."""
        return as_observer(self._last(layer, "weight_observer"))

    def rounding(self, layer: LayerInfo) -> str:
        """Of its weights."""
        return self._last(layer, "rounding")

    def corrects_bias(self, layer: LayerInfo) -> bool:
        """Whether its bias makes up for what rounding does."""
        return self._last(layer, "bias_correction")

    def asymmetric(self, layer: LayerInfo) -> bool:
        """Whether what it makes gets a zero point."""
        return self._last(layer, "asymmetric")

    def observer(self, layer: LayerInfo) -> Observer:
        """Of what it makes."""
        return as_observer(self._last(layer, "observer"))

    def out_dtype(self, layer: LayerInfo) -> Any:
        """The float dtype of what it makes, or None for int8."""
        return self._last(layer, "out_dtype")

    def unused(self, layers: Iterable[LayerInfo]) -> list[str]:
        """Patterns of the rules that are for no layer."""
        layers = list(layers)
        return [
            rule.pattern if rule.where is None else f"{rule.pattern} where {rule.where}"
            for rule in self.rules
            if not any(map(rule.fits, layers))
        ]

    def _last(self, layer: LayerInfo, field: str) -> Any:
        for rule in reversed((*self.defaults, *self.rules)):
            value = getattr(rule, field)
            if value is not None and rule.fits(layer):
                return value
        return None
