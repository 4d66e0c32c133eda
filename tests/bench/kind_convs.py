"""Convolutions of other kinds: depthwise, grouped, transposed, and with a zero point."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Conv:
    """One 2-D convolution, equal in both dimensions, and what follows it.

    Attributes:
        c, size: channels and size of the input.
        k, kernel, stride: output channels, size of the kernel, stride.
        padding: on all four sides, or ``"SAME"``.
        groups: feature groups.
        transpose: whether it is a transposed convolution.
        output_padding: of that.
        activation: that follows; None for none.
        residual: whether a residual is added before it.
        zero_point: whether the input has one.
    """

    c: int
    size: int
    k: int
    kernel: int
    stride: int = 1
    padding: int | str = "SAME"
    groups: int = 1
    transpose: bool = False
    output_padding: int = 0
    activation: str | None = "relu"
    residual: bool = False
    zero_point: bool = False

    @property
    def name(self) -> str:
        """C x H x W _ R x S, then what isn't usual: K, the stride, groups, transposed."""
        to = f"_to{self.k}" if self.k != self.c else ""
        by = f"_s{self.stride}" if self.stride != 1 else ""
        groups = f"_g{self.groups}" if self.groups != 1 else ""
        turned = "_transposed" if self.transpose else ""
        kernel = f"{self.kernel}x{self.kernel}"
        return f"{self.c}x{self.size}x{self.size}_{kernel}{to}{by}{groups}{turned}"

    @property
    def out_size(self) -> int:
        """Of the output, in both dimensions."""
        if self.padding == "SAME":
            return self.size * self.stride if self.transpose else -(-self.size // self.stride)
        assert isinstance(self.padding, int)
        if self.transpose:
            whole = (self.size - 1) * self.stride + self.kernel
            return whole - 2 * self.padding + self.output_padding
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def taps(self) -> float:
        """Products in a sum, on average; those with padding count."""
        taps = self.c // self.groups * self.kernel**2
        return taps / self.stride**2 if self.transpose else taps

    def operations(self, batch: int) -> int:
        """Two for each product of the layer itself, however it is computed."""
        pixels = self.size if self.transpose else self.out_size
        others = self.k if self.transpose else self.c
        channels = others // self.groups * (self.c if self.transpose else self.k)
        return 2 * batch * pixels**2 * channels * self.kernel**2

    def nbytes(self, batch: int) -> int:
        """Of x, weights, residual and output in int8, read and written once, none padded."""
        out = batch * self.out_size**2 * self.k * (2 if self.residual else 1)
        weights = self.k * self.kernel**2 * self.c // self.groups
        return batch * self.size**2 * self.c + weights + out


def _depthwise() -> Iterator[Conv]:
    """Those of MobileNet-v2, then what EfficientNet-Lite0 has beside them; padded as in TensorFlow,
    which both were published with."""
    mobilenet = ((32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (144, 56, 3, 2))
    mobilenet += ((192, 28, 3, 1), (192, 28, 3, 2), (384, 14, 3, 1), (576, 14, 3, 1))
    mobilenet += ((576, 14, 3, 2), (960, 7, 3, 1))
    efficientnet = ((144, 56, 5, 2), (240, 28, 5, 1), (240, 28, 3, 2), (480, 14, 3, 1))
    efficientnet += ((480, 14, 5, 1), (672, 14, 5, 1), (672, 14, 5, 2), (1152, 7, 5, 1))
    for c, size, kernel, stride in (*mobilenet, *efficientnet, (1152, 7, 3, 1)):
        yield Conv(c, size, c, kernel, stride, groups=c, activation="relu6")


def _groups() -> Iterator[Conv]:
    """ResNeXt-50 32x4d, and the same with other numbers of groups."""
    for groups in (32, 8, 2):
        for c, size in ((128, 56), (256, 28), (512, 14), (1024, 7)):
            yield Conv(c, size, c, 3, padding=1, groups=groups)
    for c, size in ((256, 56), (512, 28), (1024, 14)):
        yield Conv(c, size, c, 3, 2, padding=1, groups=32)


def _transposed() -> Iterator[Conv]:
    """Decoders: of a U-Net for 256x256, of a DCGAN, and with the kernel of 3x3 that others have."""
    for c, size in ((1024, 16), (512, 32), (256, 64), (128, 128)):
        yield Conv(c, size, c // 2, 2, 2, padding=0, transpose=True, activation=None)
    for c, size in ((1024, 4), (512, 8), (256, 16)):
        yield Conv(c, size, c // 2, 4, 2, padding=1, transpose=True)
    # Its tanh, which no two systems round alike, is left out.
    yield Conv(128, 32, 3, 4, 2, padding=1, transpose=True, activation=None)
    for c, size in ((512, 16), (256, 32), (128, 64), (64, 128)):
        yield Conv(c, size, c // 2, 3, 2, padding=1, transpose=True, output_padding=1)


def _zero_points() -> Iterator[Conv]:
    """Of ResNet-50: two with padding, whose correction is a map, and two without."""
    yield Conv(64, 56, 64, 3, padding=1, zero_point=True)
    yield Conv(256, 14, 256, 3, padding=1, zero_point=True)
    yield Conv(256, 56, 64, 1, padding=0, zero_point=True)
    yield Conv(64, 56, 256, 1, padding=0, residual=True, zero_point=True)


KINDS: dict[str, tuple[Conv, ...]] = {
    "depthwise": tuple(_depthwise()),
    "transposed": tuple(_transposed()),
    "groups": tuple(_groups()),
    "zero_points": tuple(_zero_points()),
}
"""Distinct convolutions of each kind."""

BATCHES = {"depthwise": (128, 32), "transposed": (32, 1), "groups": (32,), "zero_points": (128,)}
"""Batch sizes of each kind."""
