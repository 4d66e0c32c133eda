"""EfficientNet-Lite0 without any arithmetic: its convolutions, and what follows what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

CLASSES = 1000

BLOCKS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, channels, repeats, stride of the first, kernel."""


@dataclasses.dataclass(frozen=True)
class Conv:
    """One of the 49 convolutions, with "SAME" padding; a ReLU6 follows, or nothing."""

    name: str
    c: int
    k: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    relu6: bool = True
    residual: bool = False

    @property
    def taps(self) -> int:
        """Products in a sum."""
        return self.c // self.groups * self.kernel**2


def _convs() -> Iterator[Conv]:
    c = 32
    yield Conv("stem", 3, c, 3, stride=2)
    for stage, (expansion, k, repeats, stride, kernel) in enumerate(BLOCKS):
        for block in range(repeats):
            name, wide, by = f"{stage}.{block}", c * expansion, stride if block == 0 else 1
            if expansion > 1:
                yield Conv(f"{name}.expand", c, wide)
            yield Conv(f"{name}.depthwise", wide, wide, kernel, by, groups=wide)
            same = by == 1 and c == k
            yield Conv(f"{name}.project", wide, k, relu6=False, residual=same)
            c = k
    yield Conv("last", c, 1280)


CONVS = tuple(_convs())


def forward(x: Any, conv: Callable[..., Any], head: Callable[[Any], Any]) -> Any:
    """The network of ``conv(convolution, x, residual)`` and the head."""
    shortcut = None
    for layer in CONVS:
        if layer.name.endswith(("expand", "0.0.depthwise")):  # where a block begins
            shortcut = x
        x = conv(layer, x, shortcut if layer.residual else None)
    return head(x)
