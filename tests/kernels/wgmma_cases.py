"""Convolutions with plans of the warpgroup kernel, small: tiles hang over every border."""

from __future__ import annotations

from typing import Any

from cases import Case, Geometry


def wgmma(
    size: tuple[int, int], c: int, k: int, kernel: Any = 1, stride: Any = 1, dilation: Any = 1,
    pads: Any = "VALID", **fields: Any,
) -> Case:  # fmt: skip
    """Of two images, without padded channels."""
    kernel, strides, dilations = (
        v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, dilation)
    )
    geometry = Geometry((2, *size, c), (k, *kernel, c), strides, dilations, pads, pads)
    return Case(geometry, pack=(("pad_to", (c, k)), ("space_to_depth", False)), **fields)


CASES = {
    wgmma((5, 13), 64, 64, activation="relu"): "wgmma:0:rows=32,cols=64,run=3,product=16",
    wgmma((5, 13), 96, 128, activation="relu", residual=True):
        "wgmma:0:rows=64,cols=128,run=2,product=32",
    wgmma((7, 9), 48, 144, values="extreme", zero_points=("x", "out", "residual"), residual=True,
          activation="clip"):
        "wgmma:0:rows=64,cols=64,run=1,product=64",
    wgmma((9, 8), 16, 16, activation="prelu", zero_points=("out",)):
        "wgmma:0:rows=32,cols=64,run=5,product=32",
    wgmma((9, 7), 80, 32, 1, 2, residual=True, residual_mode="add_after_activation",
          activation="hard_swish", dyadic=True):
        "wgmma:0:rows=16,cols=64,run=2,product=16",
    wgmma((4, 6), 256, 64, 1, (1, 3), 1, ((1, 0), (0, 2)), values="large", activation="relu"):
        "wgmma:0:rows=16,cols=64,run=1,product=16",
    wgmma((6, 7), 64, 64, 3, 1, 1, "SAME", values="extreme", activation="relu"):
        "wgmma:0:rows=64,cols=64,run=2,product=32",
    wgmma((6, 5), 32, 80, 3, 1, (2, 1), ((2, 3), (0, 1)), values="large", activation="leaky_relu",
          residual=True, residual_mode="average", zero_points=("residual",)):
        "wgmma:0:rows=32,cols=128,run=1,product=32",
    wgmma((8, 6), 48, 16, (2, 4), 1, 1, ((0, 1), (3, 1)), bias=False):
        "wgmma:0:rows=96,cols=64,run=1,product=48",
    wgmma((9, 9), 32, 64, (4, 3), zero_points=("x",), activation="prelu"):
        "wgmma:0:rows=32,cols=64,run=4,product=16",
}  # fmt: skip
"""Each with its plan."""
