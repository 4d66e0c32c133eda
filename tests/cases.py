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
import pytest
from hypothesis import strategies as st
from layers import Layer

import jax_qconv
from jax_qconv import Activation, QTensor, _primitive


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Shapes and placement; ``padding`` is what the caller says, ``pads`` what it means.

    One, two or three spatial axes. Of a transposed convolution ``pads`` are cut off the output.
    """

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    padding: Any = "VALID"
    pads: Any = "VALID"
    groups: int = 1
    transpose: bool = False
    output_padding: tuple[int, ...] | None = None

    @property
    def placed(self) -> dict[str, Any]:
        """Arguments of `oracle.convolve`."""
        placed = {"strides": self.strides, "dilation": self.dilation, "groups": self.groups}
        if not self.transpose:
            return placed | {"padding": self.pads}
        return placed | {"transposed": {"crop": self.pads, "output_padding": self.output_padding}}


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
        residual_mode: of the residual.
        activation: kind of the one that is fused.
        out_dtype: of the output.
        zero_points: which of ``"x"``, ``"out"``, ``"residual"`` have one.
        pack: further arguments of `prepack`, as (name, value) pairs.
    """

    geometry: Geometry
    seed: int = 0
    values: str = "any"
    dyadic: bool = False
    per_channel: bool = True
    bias: bool = True
    residual: bool = False
    residual_mode: str = "add"
    activation: str = "none"
    out_dtype: str = "int8"
    zero_points: tuple[str, ...] = ()
    pack: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of_layer(cls, layer: Layer, *, batch: int = 1) -> Case:
        """A layer of a network as it stands there, with bias."""
        geometry = Geometry(
            (batch, layer.h, layer.w, layer.c),
            (layer.k, layer.r, layer.s, layer.c // layer.groups),
            (layer.stride, layer.stride),
            padding=layer.padding,
            pads=layer.padding,
            groups=layer.groups,
        )
        return cls(geometry, residual=layer.residual, activation="relu" if layer.relu else "none")

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `oracle.convolve`."""
        g, rng = self.geometry, np.random.default_rng(self.seed)
        x, w = (int8(rng, shape, self.values) for shape in (g.x_shape, g.w_shape))
        arguments = {"x": x, "w": w, "out_dtype": self.out_dtype, **g.placed}
        zeros = {name: np.int32(rng.choice([-128, -3, 17, 127])) for name in self.zero_points}
        if "x" in zeros:
            arguments["x_zero_point"] = zeros["x"]
        if self.out_dtype == "int32":
            return arguments
        acc = oracle.convolve(**arguments | {"out_dtype": "int32"}).astype(np.int64)
        k = len(w)
        x_scale = self._scale(2.0 ** rng.uniform(-8, 1))
        w_scale = self._scale(2.0 ** rng.uniform(-10, -4, k if self.per_channel else ()))
        if self.activation in REAL:
            # In their bent part: sums of a few units.
            x_scale = self._scale(2 / (w_scale.mean() * max(np.abs(acc).mean(), 1)))
        # One step of an int8 output: the mean output is half of the range away from zero.
        step = self._scale(x_scale * w_scale.mean() * max(np.abs(acc).mean(), 1) / 64)
        steps = rng.integers(-60, 61, k) / 2 if self.dyadic else rng.normal(0, 30, k)
        arguments |= {"x_scale": x_scale, "w_scale": w_scale}
        if self.bias:
            arguments["bias"] = (steps * step).astype(np.float32)
        if self.residual:
            arguments["residual"] = int8(rng, acc.shape, "any")
            arguments["residual_scale"] = self._scale(step * rng.uniform(0.2, 2))
            arguments["residual_mode"] = self.residual_mode
            if "residual" in zeros:
                arguments["residual_zero_point"] = zeros["residual"]
        if self.out_dtype == "int8":
            arguments["out_scale"] = step
            if "out" in zeros:
                arguments["out_zero_point"] = zeros["out"]
        arguments["activation"] = {
            "clip": Activation.clip(-20.3 * float(step), 45.7 * float(step)),
            "leaky_relu": Activation.leaky_relu(0.3),
        }.get(self.activation) or Activation(self.activation)
        if self.activation == "prelu":
            arguments["slopes"] = rng.normal(0, 0.5, k).astype(np.float32)
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
        data = {n: v for n, v in self.arguments.items() if isinstance(v, np.ndarray | np.int32)}
        if self.residual:
            fused["residual_mode"] = self.residual_mode
        out = {name: data.get(name) for name in ("out_scale", "out_zero_point", "slopes")}
        packed = None
        if bound:
            names = ("x_scale", "x_zero_point", "residual_scale", "residual_zero_point")
            size = self.geometry.x_shape[1:-1] if self.seed % 2 else None
            scales = {name: data.get(name) for name in names}
            packed = self._pack(data).bind(**scales, **out, **fused, input_size=size)
            out["slopes"] = None

        def call(data: dict[str, Any], packed: jax_qconv.PackedConv | None) -> Any:
            x, residual = QTensor(data["x"], data.get("x_scale"), data.get("x_zero_point")), None
            if self.residual:
                scale, zero = data["residual_scale"], data.get("residual_zero_point")
                residual = QTensor(data["residual"], scale, zero)
            return jax_qconv.qconv(
                x,
                self._pack(data) if packed is None else packed,
                residual=residual,
                **{name: data.get(name) for name in out if out[name] is not None},
                **fused,
                **engine,
            )

        result = (jax.jit(call) if jit else call)(data, packed)
        if isinstance(result, QTensor):
            return np.asarray(result.values)[..., : result.channels]
        return np.asarray(result)

    def problem(self) -> str:
        """The problem that its call has."""
        problems = []
        bind = _primitive.bind
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                _primitive, "bind", lambda p, o, **e: problems.append(p) or bind(p, o, **e)
            )
            self.run(jit=False, implementation="reference")
        return str(problems[-1])

    def _pack(self, data: dict[str, Any]) -> jax_qconv.PackedConv:
        g, letters = self.geometry, "DHW"[5 - len(self.geometry.w_shape) :]
        more = dict(self.pack)
        if g.transpose:
            more |= {"transpose": True, "output_padding": g.output_padding or 0}
        return jax_qconv.prepack(
            data["w"],
            data.get("bias"),
            weight_scale=data.get("w_scale", 1.0),
            layout=f"O{letters}I",
            strides=g.strides,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
            **more,
        )


REAL = ("hard_sigmoid", "hard_swish")
"""Activations that run in real units, and are exact."""


def int8(rng: np.random.Generator, shape: tuple[int, ...], values: str) -> np.ndarray:
    """Random int8 data; see `Case.values`."""
    if values == "extreme":
        return rng.choice(np.array([-128, 127], np.int8), shape)
    if values == "large":
        return (rng.choice([-1, 1]) * rng.integers(97, 128, shape)).astype(np.int8)
    return rng.integers(-128, 128, shape, np.int8)


SIDES = st.integers(0, 3)
PAIRS = st.tuples(SIDES, SIDES)


def paddings(rank: int) -> st.SearchStrategy[tuple[Any, Any]]:
    """What the caller says and what it means; see `Geometry`."""
    pairs = st.tuples(*[PAIRS] * rank)
    return st.one_of(
        st.sampled_from([("SAME", "SAME"), ("VALID", "VALID")]),
        SIDES.map(lambda side: (side, ((side, side),) * rank)),
        st.tuples(*[SIDES] * rank).map(lambda sides: (sides, tuple((s, s) for s in sides))),
        st.tuples(pairs, pairs).map(lambda both: (both[0], both[0])),
    )


@st.composite
def geometries(draw: Any, *, rank: int = 2, groups: int = 1) -> Geometry:
    """Small convolutions of every shape; the kernel may be as large as the padded input."""

    def ints(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    kernel, strides, dilation, channels = ints(1, 4), ints(1, 3), ints(1, 2), ints(1, 9, 2)
    padding, pads = draw(paddings(rank))
    size = []
    for axis in range(rank):
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        if isinstance(pads, str):
            least = 1 if pads == "SAME" else extent
        else:
            least = max(extent - sum(pads[axis]), 1)
        size.append(draw(st.integers(least, least + 5)))
    c, k = channels
    x_shape = draw(st.integers(1, 2)), *size, c * groups
    w_shape = k * groups, *kernel, c
    return Geometry(x_shape, w_shape, strides, dilation, padding, pads, groups)


def grouped() -> st.SearchStrategy[Geometry]:
    """With groups; of one channel, too: depthwise, with multipliers."""
    return st.integers(2, 6).flatmap(lambda groups: geometries(groups=groups))


@st.composite
def transposed(draw: Any) -> Geometry:
    """Transposed convolutions of one to three spatial axes."""
    rank, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))

    def ints(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    kernel, strides, dilation, size = ints(1, 4), ints(1, 3), ints(1, 2), ints(1, 5)
    more = tuple(draw(st.integers(0, stride - 1)) for stride in strides)
    pads = []
    for axis in range(rank):
        full = (size[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        before = draw(st.integers(0, min(3, full - 1)))
        pads.append((before, draw(st.integers(0, min(3, full - 1 - before)))))
    c, k = ints(1, 9, 2)
    x_shape, w_shape = (draw(st.integers(1, 2)), *size, c * groups), (k * groups, *kernel, c)
    pads = tuple(pads)
    return Geometry(x_shape, w_shape, strides, dilation, pads, pads, groups, True, more)


@st.composite
def stems(draw: Any) -> Geometry:
    """Strided convolutions of few channels, that can be cut into blocks."""
    kernel, strides = draw(st.sampled_from([(7, 7), (3, 3), (4, 4), (5, 3), (2, 2)])), (2, 2)
    padding, pads = draw(paddings(2))
    size = tuple(draw(st.integers(k, k + 6)) for k in kernel)
    c, k = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    x_shape, w_shape = (draw(st.integers(1, 2)), *size, c), (k, *kernel, c)
    return Geometry(x_shape, w_shape, strides, (1, 1), padding, pads)


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
