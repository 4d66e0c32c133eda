"""1x1 convolutions with plans of own kernels, small: the last tile hangs over the end."""

from __future__ import annotations

from typing import Any

from cases import Case, Geometry


def pointwise(pixels: int, c: int, k: int) -> Geometry:
    """Of an image with one row."""
    return Geometry((1, 1, pixels, c), (k, 1, 1, c))


def plain(*shape: int, **fields: Any) -> Case:
    """Without padded channels."""
    return Case(pointwise(*shape), pack=(("pad_to", shape[1:]),), **fields)


CASES = {
    Case(pointwise(70, 64, 64), activation="relu", residual=True):
        "pointwise:0:rows=32,cols=64,run=2",
    Case(pointwise(33, 32, 64), values="extreme", zero_points=("x", "out", "residual"),
         residual=True, activation="clip"):
        "pointwise:0:rows=32,cols=64,run=1",
    Case(pointwise(90, 96, 128), activation="prelu", zero_points=("out",)):
        "pointwise:0:rows=32,cols=64,run=2",
    Case(pointwise(100, 64, 128), residual=True, residual_mode="add_after_activation",
         activation="hard_swish", dyadic=True):
        "pointwise:0:rows=64,cols=128,run=1",
    Case(pointwise(64, 128, 64), values="large", activation="leaky_relu", residual=True,
         residual_mode="average", zero_points=("residual",)):
        "pointwise:0:rows=32,cols=64,run=4",
    Case(pointwise(40, 64, 64), bias=False): "pointwise:0:rows=64,cols=64,run=1",
    plain(65, 16, 96, activation="relu"): "pointwise:0:rows=32,cols=48,run=2",
    plain(50, 24, 144, activation="clip", residual=True): "pointwise:0:rows=32,cols=144,run=1",
    plain(70, 144, 24, residual=True): "pointwise:0:rows=32,cols=24,run=2",
    plain(40, 256, 40, values="extreme", residual=True, zero_points=("x", "residual")):
        "pointwise:0:rows=32,cols=40,run=1",
    plain(35, 256, 16, values="extreme", activation="relu"): "pointwise:0:rows=64,cols=16,run=1",
    plain(35, 4, 8, values="large"): "pointwise:0:rows=32,cols=8,run=1",
}  # fmt: skip
"""Each with its plan."""
