"""Depthwise convolutions of every kind, small: tiles hang over every border."""

from __future__ import annotations

from typing import Any

from cases import Case, Geometry


def depthwise(h, w, c, kernel, stride=1, dilation=1, pads="SAME", multiplier=1, n=2) -> Geometry:
    """Two axes; single numbers are those of both."""
    kernel, strides, dilations = (
        v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, dilation)
    )
    shapes = (n, h, w, c), (c * multiplier, *kernel, 1)
    return Geometry(*shapes, strides, dilations, pads, pads, groups=c)


GEOMETRIES = [
    depthwise(9, 11, 8, 3),
    depthwise(8, 8, 4, 3, 2),
    depthwise(3, 2, 36, 3),
    depthwise(1, 1, 72, 3),
    depthwise(15, 10, 16, 3, 1, 2),
    depthwise(13, 12, 8, 3, (2, 1), (1, 3), ((0, 1), (3, 0))),
    depthwise(10, 9, 8, 5),
    depthwise(17, 16, 12, 5, 2, 1, ((1, 2), (2, 1))),
    depthwise(14, 11, 8, 7),
    depthwise(12, 15, 4, 7, 2, 1, "VALID"),
    depthwise(7, 9, 20, (3, 1), 1, 1, ((2, 0), (0, 3))),
    depthwise(6, 9, 8, (1, 2), (1, 3)),
    depthwise(5, 7, 8, (2, 6)),
    depthwise(4, 30, 5, (1, 9), n=1),
    depthwise(6, 5, 64, 1, 2),
    Geometry((2, 21, 8), (8, 5, 1), (2,), (1,), "SAME", "SAME", groups=8),
    depthwise(7, 6, 6, 3, multiplier=2),
    depthwise(6, 7, 4, 3, 2, multiplier=3),
    Geometry((1, 4, 5, 6, 8), (8, 3, 2, 3, 1), (1, 2, 1), (1, 1, 2), "SAME", "SAME", groups=8),
]
EPILOGUES: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"out_dtype": "int32"},
    {"residual": True, "activation": "relu"},
    {"out_dtype": "float32", "activation": "leaky_relu", "values": "large"},
    {"out_dtype": "bfloat16", "residual": True, "residual_mode": "average"},
    {"out_dtype": "float16", "activation": "clip", "values": "extreme"},
    {"activation": "clip", "zero_points": ("x", "out"), "residual": True, "dyadic": True},
    {"activation": "prelu", "zero_points": ("x",), "bias": False},
    {"residual": True, "residual_mode": "add_after_activation", "activation": "relu",
     "zero_points": ("x", "out", "residual")},
    {"activation": "hard_swish", "dyadic": True, "values": "extreme"},
    {"activation": "hard_sigmoid", "out_dtype": "float16", "zero_points": ("x",)},
    {"out_dtype": "int32", "zero_points": ("x",), "values": "large"},
    {"activation": "prelu", "residual": True, "zero_points": ("out", "residual"), "seed": 3},
]  # fmt: skip
# Every geometry with three epilogues, each with another plan; every epilogue with all three.
CASES = [
    Case(geometry, **EPILOGUES[(3 * i + 4 * j) % len(EPILOGUES)] | {"seed": 7 * i + j})
    for i, geometry in enumerate(GEOMETRIES)
    for j in range(3)
]

TRANSCENDENTAL = [
    Case(depthwise(9, 11, 8, 3), activation=activation, out_dtype=dtype, residual=dtype == "int8")
    for activation in ("sigmoid", "tanh", "silu", "gelu", "gelu_tanh")
    for dtype in ("int8", "float32")
]
"""These have no one right result."""
