"""Float networks in plain Flax, as a user has them before `quantize_model`; random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from bench.efficientnet_net import BLOCKS
from bench.resnet50_net import CLASSES, STAGES

EPSILON = 1e-5
LINEAR = ("project", "shortcut")
"""Names of layers that no activation follows, or that a sum is made of before it does."""

MOBILENET_V2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
"""As BLOCKS: expansion, channels, repeats, stride of the first, kernel."""

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of the convolutions before each max-pool."""


class ConvNorm(nn.Module):
    """A convolution with a batch norm, or a bias in its place, and an activation."""

    channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    padding: str | int = "SAME"
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            self.stride,
            padding=self.padding,
            feature_group_count=self.groups,
            use_bias=not self.norm,
        )(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=True, epsilon=EPSILON)(x)
        return x if self.activation is None else self.activation(x)


class Bottleneck(nn.Module):
    """A block of ResNet v1.5, whose stride is in its 3x3 convolution."""

    width: int
    stride: int = 1
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, norm = 4 * self.width, self.norm
        y = ConvNorm(self.width, 1, norm=norm)(x)
        y = ConvNorm(self.width, 3, self.stride, padding=1, norm=norm)(y)
        y = ConvNorm(wide, 1, activation=None, norm=norm, name="project")(y)
        if x.shape != y.shape:
            x = ConvNorm(wide, 1, self.stride, activation=None, norm=norm, name="shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-50 v1.5, padded as `resnet50_net` is."""

    norm: bool = True
    stages: Sequence[tuple[int, int]] = STAGES

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ConvNorm(self.stages[0][0], 7, 2, padding=3, norm=self.norm)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, (width, blocks) in enumerate(self.stages):
            for block in range(blocks):
                x = Bottleneck(width, 2 if stage > 0 and block == 0 else 1, self.norm)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    """A block of MobileNet-v2: expand, filter each channel, project."""

    expansion: int
    channels: int
    stride: int
    kernel: int
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, y = x.shape[-1] * self.expansion, x
        if self.expansion > 1:
            y = ConvNorm(wide, 1, activation=nn.relu6, norm=self.norm)(y)
        y = ConvNorm(
            wide, self.kernel, self.stride, groups=wide, activation=nn.relu6, norm=self.norm
        )(y)
        y = ConvNorm(self.channels, 1, activation=None, norm=self.norm, name="project")(y)
        return x + y if x.shape == y.shape else y


class MobileNet(nn.Module):
    """MobileNet-v2 or, with other blocks, EfficientNet-Lite0."""

    norm: bool = True
    blocks: Sequence[tuple[int, int, int, int, int]] = MOBILENET_V2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ConvNorm(32, 3, 2, activation=nn.relu6, norm=self.norm)(x)
        for expansion, channels, repeats, stride, kernel in self.blocks:
            for block in range(repeats):
                by = stride if block == 0 else 1
                x = InvertedResidual(expansion, channels, by, kernel, self.norm)(x)
        x = ConvNorm(1280, 1, activation=nn.relu6, norm=self.norm)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class VGG(nn.Module):
    """VGG-16, whose convolutions have biases."""

    stages: Sequence[tuple[int, int]] = VGG16
    hidden: int = 4096

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for channels, repeats in self.stages:
            for _ in range(repeats):
                x = ConvNorm(channels, norm=False)(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(CLASSES)(x)


class UNet(nn.Module):
    """U-Net with padded convolutions, and batch norms as most have it now."""

    norm: bool = True
    widths: Sequence[int] = (64, 128, 256, 512, 1024)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def twice(x: jax.Array, channels: int) -> jax.Array:
            for _ in range(2):
                x = ConvNorm(channels, norm=self.norm)(x)
            return x

        skips = []
        for channels in self.widths[:-1]:
            skips.append(twice(x, channels))
            x = nn.max_pool(skips[-1], (2, 2), (2, 2))
        x = twice(x, self.widths[-1])
        for channels in reversed(self.widths[:-1]):
            x = nn.ConvTranspose(channels, (2, 2), (2, 2))(x)
            x = twice(jnp.concatenate([skips.pop(), x], -1), channels)
        return nn.Conv(2, (1, 1))(x)


NETS: dict[str, nn.Module] = {
    "resnet50": ResNet(),
    "efficientnet_lite0": MobileNet(blocks=BLOCKS),
    "mobilenet_v2": MobileNet(),
    "vgg16": VGG(),
    "unet": UNet(),
}

SIZES = dict.fromkeys(NETS, 224) | {"unet": 256}
"""Of the square images that each takes."""


def images(batch: int, size: int, seed: int = 1) -> np.ndarray:
    """``[N, size, size, 3; float32]``, random, of mean 0 and variance 1."""
    return np.random.default_rng(seed).standard_normal((batch, size, size, 3), np.float32)


def random_variables(net: nn.Module, size: int) -> Any:
    """For images of a size, the same each time; activations keep about their size from layer to
    layer, and batch norms are of statistics that aren't trivial.
    """
    rng = np.random.default_rng(0)
    draws = {
        "bias": lambda shape: rng.normal(0, 0.1, shape),
        "scale": lambda shape: rng.uniform(0.8, 1.2, shape),
        "mean": lambda shape: rng.normal(0, 0.1, shape),
        "var": lambda shape: rng.uniform(0.8, 1.2, shape),
    }

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        *modules, name = (key.key for key in path)
        if name == "kernel":
            gain = 1 if set(LINEAR).intersection(modules) else 2  # ReLU halves the variance
            deviation = np.float32((gain / math.prod(leaf.shape[:-1])) ** 0.5)
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * deviation)
        return jnp.asarray(draws[name](leaf.shape), leaf.dtype)

    # Not by net.init itself, which takes longer to compile than all the rest.
    shapes = jax.eval_shape(net.init, jax.random.key(0), images(1, size))
    return jax.tree.map_with_path(draw, shapes)


def folded(net: nn.Module, variables: Any) -> tuple[nn.Module, Any]:
    """The same network with its batch norms folded into weights and biases beforehand.

    The faster form where XLA computes it: it doesn't fold them into weights that are arguments.
    """

    def fold(params: Any, statistics: Any) -> Any:
        if "BatchNorm_0" in params:
            norm, seen = params["BatchNorm_0"], statistics["BatchNorm_0"]
            factor = norm["scale"] / jnp.sqrt(seen["var"] + EPSILON)
            kernel = params["Conv_0"]["kernel"] * factor[None, None, None]
            return {"Conv_0": {"kernel": kernel, "bias": norm["bias"] - seen["mean"] * factor}}
        return {
            name: fold(value, statistics.get(name, {})) if isinstance(value, dict) else value
            for name, value in params.items()
        }

    if "batch_stats" not in variables:
        return net, variables
    return net.clone(norm=False), {"params": fold(variables["params"], variables["batch_stats"])}
