"""One small network as plain functions, in Linen and in NNX: the same bytes from all three."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

import flax.linen as nn
from flax import nnx

import jax_qconv.linen
import jax_qconv.nnx
from jax_qconv import PackedConv, QTensor, prepack, qconv, quantize

Params = dict[str, dict[str, jax.Array]]
Output = tuple[QTensor, jax.Array]

# The stem halves the size, its SAME padding being asymmetric in height; first and second make
# a residual block on the stem's output.
KERNELS = {
    "stem": (3, 3, 3, 16),
    "first": (3, 3, 16, 16),
    "second": (3, 3, 16, 16),
    "logits": (1, 1, 16, 10),
}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 15, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params() -> Params:
    rng = np.random.default_rng(1)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.prod(shape[:3]) ** 0.5, jnp.float32),
            "bias": jnp.asarray(rng.normal(size=shape[3]) / 4, jnp.float32),
        }
        for name, shape in KERNELS.items()
    }


def float_net(params: Params, x: jax.Array) -> dict[str, jax.Array]:
    """The trained network: what comes in and out of each layer."""

    def conv(name: str, x: jax.Array, strides: int = 1) -> jax.Array:
        _, _, _, features = KERNELS[name]
        layer = nn.Conv(features, KERNELS[name][:2], strides)
        return layer.apply({"params": params[name]}, x)

    stem = nn.relu(conv("stem", x, strides=2))
    first = nn.relu(conv("first", stem))
    second = nn.relu(conv("second", first) + stem)
    return {
        "x": x,
        "stem": stem,
        "first": first,
        "second": second,
        "logits": conv("logits", second),
    }


@pytest.fixture(scope="module")
def scales(params: Params) -> dict[str, dict[str, jax.Array]]:
    """Calibrated on the images: the scales of each layer."""
    x, stem, first, second = (
        jnp.abs(v).max() / 127 for name, v in float_net(params, IMAGES).items() if name != "logits"
    )
    return {
        "stem": {"x_scale": x, "out_scale": stem},
        "first": {"x_scale": stem, "out_scale": first},
        "second": {"x_scale": first, "out_scale": second, "residual_scale": stem},
        "logits": {"x_scale": second},
    }


class LinenNet(nn.Module):
    def setup(self) -> None:
        conv = functools.partial(jax_qconv.linen.QConv, kernel_size=(3, 3), activation="relu")
        self.stem = conv(16, strides=2)
        self.first = conv(16)
        self.second = conv(16, residual=True)
        self.logits = jax_qconv.linen.QConv(10, (1, 1), out_dtype="float32")

    def __call__(self, x: QTensor) -> Output:
        stem = self.stem(x)
        block = self.second(self.first(stem), residual=stem)
        return block, self.logits(block)


class NNXNet(nnx.Module):
    def __init__(self, float_layers: dict[str, nnx.Conv], scales: dict[str, Any]) -> None:
        def quantized(name: str, **kwargs: Any) -> jax_qconv.nnx.QConv:
            return jax_qconv.nnx.QConv.from_float(float_layers[name], **scales[name], **kwargs)

        self.stem = quantized("stem", activation="relu")
        self.first = quantized("first", activation="relu")
        self.second = quantized("second", activation="relu")
        self.logits = quantized("logits")

    def __call__(self, x: QTensor) -> Output:
        stem = self.stem(x)
        block = self.second(self.first(stem), residual=stem)
        return block, self.logits(block)


def function_net(packs: dict[str, PackedConv], x: QTensor) -> Output:
    stem = qconv(x, packs["stem"])
    block = qconv(qconv(stem, packs["first"]), packs["second"], residual=stem)
    return block, qconv(block, packs["logits"])


@pytest.fixture(scope="module")
def x(scales) -> QTensor:
    return quantize(IMAGES, scales["stem"]["x_scale"])


@pytest.fixture(scope="module")
def packs(params, scales) -> dict[str, PackedConv]:
    packs = {}
    for name, p in params.items():
        packed = prepack(p["kernel"], p["bias"], strides=2 if name == "stem" else 1)
        activation = "none" if name == "logits" else "relu"
        packs[name] = packed.bind(**scales[name], activation=activation)
    return packs


@pytest.fixture(scope="module")
def expected(packs, x) -> Output:
    return function_net(packs, x)


def assert_same_bytes(found: Output, expected: Output) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_plain_functions_under_jit(packs, x, expected):
    assert_same_bytes(jax.jit(function_net)(packs, x), expected)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_linen(transform, params, scales, x, expected):
    net = LinenNet()
    layers = net.bind({})
    variables = {
        "quantized": {
            name: getattr(layers, name).from_float(params[name], **scales[name]) for name in KERNELS
        }
    }
    assert_same_bytes(transform(net.apply)(variables, x), expected)


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_nnx(transform, params, scales, x, expected):
    float_layers = {}
    for name, (*size, c, k) in KERNELS.items():
        strides = 2 if name == "stem" else 1
        zeros = nnx.initializers.zeros
        conv = nnx.Conv(c, k, size, strides, kernel_init=zeros, rngs=nnx.Rngs(0))
        conv.kernel.set_value(params[name]["kernel"])
        conv.bias.set_value(params[name]["bias"])
        float_layers[name] = conv
    net = NNXNet(float_layers, scales)
    assert_same_bytes(transform(lambda net, x: net(x))(net, x), expected)


def test_the_bytes_mean_what_the_float_network_computes(params, expected):
    _, logits = expected
    wanted = float_net(params, IMAGES)["logits"]
    sqnr = 10 * np.log10(np.mean(wanted**2) / np.mean((logits - wanted) ** 2))
    assert sqnr > 30
