"""The ops between convolutions on a GPU: the bytes that the CPU gives, which oracles check."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jax_qconv as q
from jax_qconv import QTensor

SHAPE = (3, 18, 17, 24)
KINDS = ["relu", "leaky_relu", "hard_swish", "hard_sigmoid"]
SMOOTH = ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh"]


def tensor(seed: int, shape=SHAPE, scale=0.1, zero_point=None) -> QTensor:
    values = np.random.default_rng(seed).integers(-128, 128, shape, np.int8)
    return QTensor(values, np.float32(scale), zero_point and np.int32(zero_point))


X, Y = tensor(0, zero_point=3), tensor(1, scale=0.037, zero_point=-7)
GATE = tensor(2, (3, 1, 1, 24), scale=1 / 255, zero_point=-128)

OPS = {
    "requantize": lambda: (lambda x: q.requantize(x, out_scale=0.23, out_zero_point=5), X),
    "qadd": lambda: (lambda x, y: q.qadd(x, y, out_scale=0.11, activation="relu6"), X, Y),
    "qmul": lambda: (lambda x, y: q.qmul(x, y, out_scale=0.09), X, GATE),
    "qmax_pool": lambda: (lambda x: q.qmax_pool(x, 3, strides=2, padding=1), X),
    "qavg_pool": lambda: (lambda x: q.qavg_pool(x, 3, strides=2, padding="SAME"), X),
    "qavg_pool-scaled": lambda: (lambda x: q.qavg_pool(x, (2, 3), out_scale=0.13), X),
    "qglobal_avg_pool": lambda: (q.qglobal_avg_pool, X),
    "qadaptive_avg_pool": lambda: (lambda x: q.qadaptive_avg_pool(x, (5, 7)), X),
    "qconcat": lambda: (lambda x, y: q.qconcat([x, y], out_scale=0.2), X, Y),
    "nearest": lambda: (lambda x: q.qresize(x, (31, 9)), X),
    "bilinear": lambda: (lambda x: q.qresize(x, (31, 9), method="bilinear"), X),
    "bilinear-scaled": lambda: (
        lambda x: q.qresize(x, (31, 9), method="bilinear", out_scale=0.3), X
    ),
    "qpixel_shuffle": lambda: (lambda x: q.qpixel_shuffle(x, 2), X),
    "qchannel_shuffle": lambda: (lambda x: q.qchannel_shuffle(x, 4), X),
    "qpad": lambda: (lambda x: q.qpad(x, ((1, 2), (0, 3))), X),
    **{
        kind: lambda kind=kind: (lambda x: q.qactivation(x, kind, out_scale=0.05), X)
        for kind in [*KINDS, *SMOOTH]
    },
}  # fmt: skip


def run(device: jax.Device, function, arguments, *, constant: bool) -> np.ndarray:
    """The values on a device; scales are arguments of the program, or constants in it."""
    with jax.default_device(device):
        if not constant:
            return np.asarray(jax.jit(function)(*arguments).values)

        def call(values):
            pairs = zip(values, arguments, strict=True)
            return function(*(QTensor(v, a.scale, a.zero_point) for v, a in pairs)).values

        return np.asarray(jax.jit(call)([a.values for a in arguments]))


@pytest.mark.parametrize("constant", [False, True], ids=["traced", "constant"])
@pytest.mark.parametrize("name", OPS)
def test_gpu_and_cpu_give_the_same_bytes(name, constant, gpus, account):
    function, *arguments = OPS[name]()
    cpu = jax.local_devices(backend="cpu")[0]
    want, got = (run(d, function, arguments, constant=constant) for d in (cpu, gpus[0]))
    if name in SMOOTH and not constant:
        # exp, tanh and erfc may differ in their last bit.
        assert np.abs(got.astype(int) - want).max() <= 1 and (got != want).mean() < 1e-3
    else:
        account.same(got, want)
    assert len(np.unique(want)) > 3


def test_an_image_is_taken_as_it_is(gpus, account):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    image = jax.jit(lambda x: q.quantize_image(x, 1 / 255).unpadded())(pixels)
    account.same(image, (pixels.astype(np.int16) - 128).astype(np.int8))
    assert image.devices() == {gpus[0]}
