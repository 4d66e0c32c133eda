"""First layers of networks with plans of their own kernel, small: tiles hang over every border."""

from __future__ import annotations

from typing import Any

from cases import Case, Geometry


def stem(size: tuple[int, int], c: int, k: int, kernel: Any, stride: Any, pads: Any, **fields: Any):
    """Of two images."""
    kernel, strides = (v if isinstance(v, tuple) else (v, v) for v in (kernel, stride))
    pack = (("space_to_depth", False),)
    shapes = (2, *size, c), (k, *kernel, c)
    return Case(Geometry(*shapes, strides, (1, 1), pads, pads), pack=pack, **fields)


CASES = {
    stem((19, 37), 3, 16, 7, 2, ((3, 3), (3, 3)), activation="relu"):
        "stem:0:rows=2,cols=16,run=3",
    stem((9, 40), 3, 8, 3, 2, "SAME", activation="clip", zero_points=("x", "out")):
        "stem:0:rows=4,cols=16,run=1",
    stem((6, 33), 4, 24, 3, 1, "SAME", values="extreme", activation="prelu"):
        "stem:0:rows=2,cols=48,run=2",
    stem((5, 21), 12, 8, (4, 4), 1, ((1, 2), (2, 1)), values="large", activation="leaky_relu"):
        "stem:0:rows=2,cols=32,run=4",
    stem((7, 20), 16, 72, (2, 4), (1, 2), "VALID", zero_points=("x",), activation="hard_swish",
         dyadic=True):
        "stem:0:rows=2,cols=16,run=1",
    stem((4, 18), 8, 8, (1, 5), (3, 1), ((0, 0), (4, 0)), bias=False):
        "stem:0:rows=2,cols=32,run=1",
    stem((40, 2), 1, 8, (11, 1), (4, 1), ((5, 5), (0, 0)), zero_points=("x",)):
        "stem:0:rows=4,cols=16,run=1",
}  # fmt: skip
"""Each with its plan."""
