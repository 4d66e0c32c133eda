"""1x1 convolutions with plans of own kernels, small: the last tile hangs over the end."""

from __future__ import annotations

from cases import Case, Geometry


def pointwise(pixels: int, c: int, k: int) -> Geometry:
    """Of an image with one row."""
    return Geometry((1, 1, pixels, c), (k, 1, 1, c))


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
}  # fmt: skip
"""Each with its plan."""
