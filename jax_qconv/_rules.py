"""Rules: what is done otherwise for single layers of a network."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

from jax_qconv._observers import Observer, as_observer


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is done otherwise for the layers whose name fits a pattern.

    A layer is named by the path of its weights among the parameters, such as
    ``"params/Conv_0"``; one that is used several times is one layer. Later rules go before earlier
    ones; what is None is left to others.

    Attributes:
        pattern: such as ``"params/Conv_0"`` or ``"*/Dense_*"`` (of `fnmatch`).
        skip: whether to leave the layer real.
        per_channel: whether each output channel has its own weight scale.
        observer: of the values that the layer makes.
        asymmetric: whether these get a zero point.
    """

    pattern: str
    skip: bool | None = None
    per_channel: bool | None = None
    observer: Observer | str | None = None
    asymmetric: bool | None = None


@dataclasses.dataclass(frozen=True)
class RuleBook:
    """All rules, the first of which fits every layer."""

    rules: tuple[Rule, ...]

    @classmethod
    def make(
        cls,
        rules: Sequence[Rule],
        *,
        per_channel: bool,
        asymmetric: bool,
        observer: Observer | str,
    ) -> RuleBook:
        """Checked rules after the defaults."""
        if isinstance(rules, Rule) or not isinstance(rules, Sequence):
            raise TypeError(f"rules must be a sequence of Rule, got {rules!r}; pass a list.")
        for rule in rules:
            if not isinstance(rule, Rule) or not isinstance(rule.pattern, str):
                raise TypeError(f"rules must hold Rule with patterns of text, got {rule!r}.")
            for field in ("skip", "per_channel", "asymmetric"):
                value = getattr(rule, field)
                if value not in (None, True, False):
                    raise TypeError(
                        f"{field} of a Rule must be True, False or None, got {value!r}."
                    )
            if rule.observer is not None:
                as_observer(rule.observer)
        first = Rule("*", False, per_channel, as_observer(observer), asymmetric)
        return cls((first, *rules))

    def skips(self, name: str) -> bool:
        """Whether a layer stays real."""
        return bool(self._last(name, "skip"))

    def per_channel(self, name: str) -> bool:
        """Whether its weights have a scale for each output channel."""
        return bool(self._last(name, "per_channel"))

    def asymmetric(self, name: str) -> bool:
        """Whether what it makes gets a zero point."""
        return bool(self._last(name, "asymmetric"))

    def observer(self, name: str) -> Observer:
        """Of what it makes."""
        return as_observer(self._last(name, "observer"))

    def unused(self, names: Sequence[str]) -> list[str]:
        """Patterns that fit no layer."""
        return [
            rule.pattern
            for rule in self.rules[1:]
            if not any(fnmatch.fnmatchcase(name, rule.pattern) for name in names)
        ]

    def _last(self, name: str, field: str):
        name = name.partition("#")[0]
        for rule in reversed(self.rules):
            value = getattr(rule, field)
            if value is not None and fnmatch.fnmatchcase(name, rule.pattern):
                return value
        raise AssertionError("the first rule has all")
