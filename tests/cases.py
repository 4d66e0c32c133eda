"""Calls of `qconv` with their data, and the hypothesis strategies that draw them.

A `Case` is small and prints well; its arrays follow from it. Scales are chosen so that the
outputs spread over the whole int8 range, saturate on both sides, and often lie on ties.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import oracle
from hypothesis import strategies as st
from layers import Layer

import jax_qconv
from jax_qconv import Activation, QTensor


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Shapes and placement; ``padding`` is what the caller says, ``pads`` what it means."""

    x_shape: tuple[int, int, int, int]
    w_shape: tuple[int, int, int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Any = "VALID"
    pads: Any = "VALID"


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        geometry: shapes and placement.
        seed: of all data.
        values: ``"any"`` int8; ``"extreme"``: -128 and 127 only; ``"large"``: of one sign, so
            that sums grow as fast as they can.
        dyadic: whether scales are powers of two: then many outputs are ties.
        per_channel: whether each output channel has its own weight scale.
        bias, residual: whether there is one.
        activation: kind of the one that is fused.
        out_dtype: of the output.
    """

    geometry: Geometry
    seed: int = 0
    values: str = "any"
    dyadic: bool = False
    per_channel: bool = True
    bias: bool = True
    residual: bool = False
    activation: str = "none"
    out_dtype: str = "int8"

    @classmethod
    def of_layer(cls, layer: Layer, *, batch: int = 1) -> Case:
        """A layer of a network as it stands there, with bias."""
        geometry = Geometry(
            (batch, layer.h, layer.w, layer.c),
            (layer.k, layer.r, layer.s, layer.c),
            (layer.stride, layer.stride),
            padding=layer.padding,
            pads=layer.padding,
        )
        return cls(geometry, residual=layer.residual, activation="relu" if layer.relu else "none")

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `oracle.convolve`."""
        g, rng = self.geometry, np.random.default_rng(self.seed)
        x, w = (int8(rng, shape, self.values) for shape in (g.x_shape, g.w_shape))
        placed = {"strides": g.strides, "padding": g.pads, "dilation": g.dilation}
        arguments = {"x": x, "w": w, "out_dtype": self.out_dtype, **placed}
        if self.out_dtype == "int32":
            return arguments
        acc = oracle.accumulate(x, w, **placed)
        k = len(w)
        x_scale = self._scale(2.0 ** rng.uniform(-8, 1))
        w_scale = self._scale(2.0 ** rng.uniform(-10, -4, k if self.per_channel else ()))
        # One step of an int8 output: the mean output is half of the range away from zero.
        step = self._scale(x_scale * w_scale.mean() * max(np.abs(acc).mean(), 1) / 64)
        steps = rng.integers(-60, 61, k) / 2 if self.dyadic else rng.normal(0, 30, k)
        arguments |= {"x_scale": x_scale, "w_scale": w_scale}
        if self.bias:
            arguments["bias"] = (steps * step).astype(np.float32)
        if self.residual:
            arguments["residual"] = int8(rng, acc.shape, "any")
            arguments["residual_scale"] = self._scale(step * rng.uniform(0.2, 2))
        if self.out_dtype == "int8":
            arguments["out_scale"] = step
        arguments["activation"] = {
            "none": Activation(),
            "relu": Activation("relu"),
            "clip": Activation.clip(-20.3 * float(step), 45.7 * float(step)),
            "leaky_relu": Activation.leaky_relu(0.3),
        }[self.activation]
        return arguments

    def _scale(self, value: Any) -> np.ndarray:
        return np.asarray(2.0 ** np.rint(np.log2(value)) if self.dyadic else value, np.float32)

    def expected(self) -> np.ndarray:
        """What the oracle says: ``[N, P, Q, K; out_dtype]``."""
        return oracle.convolve(**self.arguments)

    def run(self, *, jit: bool, bound: bool = False, **engine: Any) -> np.ndarray:
        """What `qconv` says, inside or outside `jax.jit`.

        With ``bound``, the weights are packed and the scales bound beforehand; else it all
        happens in the call.
        """
        fused = {"activation": self.arguments.get("activation"), "out_dtype": self.out_dtype}
        data = {name: v for name, v in self.arguments.items() if isinstance(v, np.ndarray)}
        packed = None
        if bound:
            scales = {name: data.get(name) for name in ("x_scale", "out_scale", "residual_scale")}
            packed = self._pack(data).bind(**scales, **fused)

        def call(data: dict[str, Any], packed: jax_qconv.PackedConv | None) -> Any:
            x, residual = QTensor(data["x"], data.get("x_scale")), None
            if self.residual:
                residual = QTensor(data["residual"], data["residual_scale"])
            return jax_qconv.qconv(
                x,
                self._pack(data) if packed is None else packed,
                residual=residual,
                out_scale=data.get("out_scale"),
                **fused,
                **engine,
            )

        out = (jax.jit(call) if jit else call)(data, packed)
        if isinstance(out, QTensor):
            return np.asarray(out.values)[..., : out.channels]
        return np.asarray(out)

    def _pack(self, data: dict[str, Any]) -> jax_qconv.PackedConv:
        return jax_qconv.prepack(
            data["w"],
            data.get("bias"),
            weight_scale=data.get("w_scale", 1.0),
            layout="OHWI",
            strides=self.geometry.strides,
            padding=self.geometry.padding,
            dilation=self.geometry.dilation,
        )


def int8(rng: np.random.Generator, shape: tuple[int, ...], values: str) -> np.ndarray:
    """Random int8 data; see `Case.values`."""
    if values == "extreme":
        return rng.choice(np.array([-128, 127], np.int8), shape)
    if values == "large":
        return (rng.choice([-1, 1]) * rng.integers(97, 128, shape)).astype(np.int8)
    return rng.integers(-128, 128, shape, np.int8)


SIDES = st.integers(0, 3)
PAIRS = st.tuples(SIDES, SIDES)
PADDINGS = st.one_of(
    st.sampled_from([("SAME", "SAME"), ("VALID", "VALID")]),
    SIDES.map(lambda side: (side, ((side, side), (side, side)))),
    PAIRS.map(lambda pair: (pair, tuple((side, side) for side in pair))),
    st.tuples(PAIRS, PAIRS).map(lambda pairs: (pairs, pairs)),
)
"""What the caller says and what it means; see `Geometry`."""


@st.composite
def geometries(draw: Any) -> Geometry:
    """Small convolutions of every shape; the kernel may be as large as the padded input."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, strides, dilation, channels = pair(1, 4), pair(1, 3), pair(1, 2), pair(1, 9)
    padding, pads = draw(PADDINGS)
    size = []
    for axis in range(2):
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        if isinstance(pads, str):
            least = 1 if pads == "SAME" else extent
        else:
            least = max(extent - sum(pads[axis]), 1)
        size.append(draw(st.integers(least, least + 5)))
    c, k = channels
    x_shape = draw(st.integers(1, 2)), *size, c
    return Geometry(x_shape, (k, *kernel, c), strides, dilation, padding, pads)


def cases(**fixed: Any) -> st.SearchStrategy[Case]:
    """Calls of every kind; ``fixed`` are strategies to use instead."""
    booleans = st.booleans()
    drawn = {
        "geometry": geometries(),
        "seed": st.integers(0, 2**32 - 1),
        "values": st.sampled_from(["any", "extreme", "large"]),
        "dyadic": booleans,
        "per_channel": booleans,
        "bias": booleans,
        "residual": booleans,
        "activation": st.sampled_from(["none", "relu", "clip", "leaky_relu"]),
        "out_dtype": st.sampled_from(["int8", "float32", "bfloat16", "float16"]),
    }
    return st.builds(Case, **drawn | fixed)
