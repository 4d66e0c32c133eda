"""The real layers that tests and benchmarks share."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layer:
    """One 2-D convolution of a network, and what follows it.

    Attributes:
        c, h, w: channels and size of the input.
        k: output channels.
        r, s: size of the kernel.
        stride: in both dimensions.
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
    relu: bool = True
    residual: bool = False
    count: int = 1

    @property
    def name(self) -> str:
        """C x H x W _ R x S, then K where it isn't C, and the stride where it isn't 1."""
        to = f"_to{self.k}" if self.k != self.c else ""
        by = f"_s{self.stride}" if self.stride != 1 else ""
        return f"{self.c}x{self.h}x{self.w}_{self.r}x{self.s}{to}{by}"

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
