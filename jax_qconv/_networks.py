"""The convolutions of well-known networks, for tuning and benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Layer:
    """One 2-D convolution of a network, and what follows it.

    Attributes:
        c, h, w: channels and size of the input.
        k: output channels.
        r, s: size of the kernel.
        stride: in both dimensions.
        groups: feature groups.
        relu: whether a ReLU follows.
        residual: whether a residual is added before it.
        count: how often the network has it.
    """

    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: int = 1
    groups: int = 1
    relu: bool = True
    residual: bool = False
    count: int = 1

    @property
    def name(self) -> str:
        """C x H x W _ R x S, then K where it isn't C, the stride and groups where they aren't 1."""
        to = f"_to{self.k}" if self.k != self.c else ""
        by = f"_s{self.stride}" if self.stride != 1 else ""
        groups = f"_g{self.groups}" if self.groups != 1 else ""
        return f"{self.c}x{self.h}x{self.w}_{self.r}x{self.s}{to}{by}{groups}"

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Half the kernel on each side."""
        return (self.r // 2, self.r // 2), (self.s // 2, self.s // 2)


RESNET50 = (
    Layer(3, 224, 224, 64, 7, 7, stride=2),
    Layer(64, 56, 56, 64, 1, 1),
    Layer(64, 56, 56, 64, 3, 3, count=3),
    # One of these four is the shortcut of the first block, with neither residual nor ReLU.
    Layer(64, 56, 56, 256, 1, 1, residual=True, count=4),
    Layer(256, 56, 56, 64, 1, 1, count=2),
    Layer(256, 56, 56, 128, 1, 1),
    Layer(128, 56, 56, 128, 3, 3, stride=2),
    Layer(128, 28, 28, 512, 1, 1, residual=True, count=4),
    Layer(256, 56, 56, 512, 1, 1, stride=2, relu=False),
    Layer(512, 28, 28, 128, 1, 1, count=3),
    Layer(128, 28, 28, 128, 3, 3, count=3),
    Layer(512, 28, 28, 256, 1, 1),
    Layer(256, 28, 28, 256, 3, 3, stride=2),
    Layer(256, 14, 14, 1024, 1, 1, residual=True, count=6),
    Layer(512, 28, 28, 1024, 1, 1, stride=2, relu=False),
    Layer(1024, 14, 14, 256, 1, 1, count=5),
    Layer(256, 14, 14, 256, 3, 3, count=5),
    Layer(1024, 14, 14, 512, 1, 1),
    Layer(512, 14, 14, 512, 3, 3, stride=2),
    Layer(512, 7, 7, 2048, 1, 1, residual=True, count=3),
    Layer(1024, 14, 14, 2048, 1, 1, stride=2, relu=False),
    Layer(2048, 7, 7, 512, 1, 1, count=2),
    Layer(512, 7, 7, 512, 3, 3, count=2),
)
"""The 23 distinct convolutions of ResNet-50 v1.5 (the stride is in the 3x3), in order."""


def _resnet18() -> Iterator[Layer]:
    yield Layer(3, 224, 224, 64, 7, 7, stride=2)
    c, size = 64, 56
    for k in (64, 128, 256, 512):
        if k != c:
            yield Layer(c, size, size, k, 3, 3, stride=2)
            yield Layer(c, size, size, k, 1, 1, stride=2, relu=False)
            size //= 2
        yield Layer(k, size, size, k, 3, 3, count=2 if k == 64 else 1)
        yield Layer(k, size, size, k, 3, 3, residual=True, count=2)
        c = k


def _resnext50() -> Iterator[Layer]:
    """32x4d: 32 groups, of 4 channels in the first blocks; the stride is in the 3x3."""
    yield Layer(3, 224, 224, 64, 7, 7, stride=2)
    c, size = 64, 56
    for wide, blocks in ((128, 3), (256, 4), (512, 6), (1024, 3)):
        for block in range(blocks):
            stride = 2 if wide > 128 and block == 0 else 1
            yield Layer(c, size, size, wide, 1, 1)
            yield Layer(wide, size, size, wide, 3, 3, stride=stride, groups=32)
            if block == 0:
                yield Layer(c, size, size, 2 * wide, 1, 1, stride=stride, relu=False)
            size //= stride
            yield Layer(wide, size, size, 2 * wide, 1, 1, residual=True)
            c = 2 * wide


def _vgg16() -> Iterator[Layer]:
    c, size = 3, 224
    for k, more in ((64, 1), (128, 1), (256, 2), (512, 2)):
        yield Layer(c, size, size, k, 3, 3)
        yield Layer(k, size, size, k, 3, 3, count=more)
        c, size = k, size // 2
    yield Layer(512, 14, 14, 512, 3, 3, count=3)


def _inverted_residuals(
    blocks: tuple[tuple[int, int, int, int], ...], size: int, c: int
) -> Iterator[Layer]:
    """The pointwise convolutions of blocks of (expansion, channels, repeats, stride).

    The depthwise convolution between them, which has the stride, is not among them.
    """
    for expansion, k, repeats, stride in blocks:
        for index in range(repeats):
            wide = c * expansion
            if expansion > 1:
                yield Layer(c, size, size, wide, 1, 1)
            size = -(-size // stride) if index == 0 else size
            # Linear bottlenecks: no activation follows the projection.
            yield Layer(wide, size, size, k, 1, 1, relu=False, residual=c == k and index > 0)
            c = k


def _mobilenet_v2() -> Iterator[Layer]:
    yield Layer(3, 224, 224, 32, 3, 3, stride=2)
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    yield from _inverted_residuals((*blocks, (6, 160, 3, 2), (6, 320, 1, 1)), 112, 32)
    yield Layer(320, 7, 7, 1280, 1, 1)


def _efficientnet_lite0() -> Iterator[Layer]:
    yield Layer(3, 224, 224, 32, 3, 3, stride=2)
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 40, 2, 2), (6, 80, 3, 2), (6, 112, 3, 1))
    yield from _inverted_residuals((*blocks, (6, 192, 4, 2), (6, 320, 1, 1)), 112, 32)
    yield Layer(320, 7, 7, 1280, 1, 1)


def _unet() -> Iterator[Layer]:
    c, size = 3, 256
    for k in (64, 128, 256, 512, 1024):
        yield Layer(c, size, size, k, 3, 3)
        yield Layer(k, size, size, k, 3, 3, count=1 if k == 1024 else 2)
        c, size = k, size // 2
    for k, size in ((512, 32), (256, 64), (128, 128), (64, 256)):
        yield Layer(2 * k, size, size, k, 3, 3)
    yield Layer(64, 256, 256, 2, 1, 1, relu=False)


def _yolo() -> Iterator[Layer]:
    yield Layer(3, 640, 640, 32, 3, 3, stride=2)
    c, size = 32, 320
    for k, repeats in ((64, 1), (128, 2), (256, 2), (512, 1)):
        yield Layer(c, size, size, k, 3, 3, stride=2)
        size //= 2
        yield Layer(k, size, size, k, 1, 1)
        yield Layer(k // 2, size, size, k // 2, 3, 3, count=2 * repeats)
        yield Layer((2 + repeats) * k // 2, size, size, k, 1, 1)
        c = k


def _distinct(layers: Iterator[Layer]) -> tuple[Layer, ...]:
    """Each once, with the sum of its counts."""
    counts: dict[Layer, int] = {}
    for layer in layers:
        once = dataclasses.replace(layer, count=1)
        counts[once] = counts.get(once, 0) + layer.count
    return tuple(dataclasses.replace(layer, count=n) for layer, n in counts.items())


NETWORKS: dict[str, tuple[Layer, ...]] = {
    "resnet18": _distinct(_resnet18()),
    "resnet50": RESNET50,
    # Convolutions alone, as most published times of layers are: no residuals.
    "resnet50_plain": tuple(dataclasses.replace(layer, residual=False) for layer in RESNET50),
    "resnext50": _distinct(_resnext50()),
    "vgg16": _distinct(_vgg16()),
    "mobilenet_v2": _distinct(_mobilenet_v2()),
    "efficientnet_lite0": _distinct(_efficientnet_lite0()),
    "unet": _distinct(_unet()),
    "yolov8s": _distinct(_yolo()),
}
"""Distinct convolutions by network. The inputs are 224x224, of the U-Net 256x256 and of the
backbone of YOLOv8s 640x640. Depthwise and transposed convolutions are left out, and ReLU stands
for the ReLU6 of MobileNet and EfficientNet and for the SiLU of YOLO."""
