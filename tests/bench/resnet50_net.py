"""ResNet-50 v1.5 without any arithmetic: its convolutions, and what follows what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

CLASSES = 1000
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Width and number of the blocks of each stage."""


@dataclasses.dataclass(frozen=True)
class Conv:
    """One of the 53 convolutions; ``kernel`` and ``stride`` in both dimensions."""

    name: str
    c: int
    k: int
    kernel: int
    stride: int = 1
    relu: bool = True
    residual: bool = False

    @property
    def taps(self) -> int:
        """Products in a sum."""
        return self.c * self.kernel**2


def _convs() -> Iterator[Conv]:
    yield Conv("stem", 3, 64, 7, stride=2)
    c = 64
    for stage, (width, blocks) in enumerate(STAGES):
        for block in range(blocks):
            name, stride = f"{stage}.{block}", 2 if stage > 0 and block == 0 else 1
            yield Conv(f"{name}.reduce", c, width, 1)
            yield Conv(f"{name}.middle", width, width, 3, stride)
            if block == 0:
                yield Conv(f"{name}.shortcut", c, 4 * width, 1, stride, relu=False)
            yield Conv(f"{name}.expand", width, 4 * width, 1, residual=True)
            c = 4 * width


CONVS = tuple(_convs())


def forward(
    x: Any, conv: Callable[..., Any], pool: Callable[[Any], Any], head: Callable[[Any], Any]
) -> Any:
    """The network of ``conv(name, x, residual)``, a max-pool of 3x3 by 2, and the head."""
    x = pool(conv("stem", x))
    for stage, (_, blocks) in enumerate(STAGES):
        for block in range(blocks):
            name = f"{stage}.{block}"
            shortcut = conv(f"{name}.shortcut", x) if block == 0 else x
            y = conv(f"{name}.middle", conv(f"{name}.reduce", x))
            x = conv(f"{name}.expand", y, shortcut)
    return head(x)
