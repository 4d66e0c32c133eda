"""Two plain Flax networks for small photos; nothing in them knows of int8.

Both halve the photo at once, so that they can be trained on a CPU, too.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

CLASSES = 10


class ResNet(nn.Module):
    """ResNet-20: three stages of three blocks of two 3x3 convolutions, and projections.

    Attributes:
        widths: channels of each stage.
        blocks: of each stage.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[N, H, W, 1; float32]`` to logits ``[N, CLASSES]``."""
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(conv(self.widths[0], (3, 3), 2)(x)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(conv(width, (3, 3), strides)(x)))
                y = norm()(conv(width, (3, 3))(y))
                if x.shape != y.shape:
                    x = norm()(conv(width, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Depthwise 3x3 convolutions, each followed by a 1x1 convolution.

    Attributes:
        stem: channels of the first convolution.
        layers: channels and stride of each pair.
    """

    stem: int = 32
    layers: tuple[tuple[int, int], ...] = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """``[N, H, W, 1; float32]`` to logits ``[N, CLASSES]``."""
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(conv(self.stem, (3, 3), 2)(x)))
        for width, strides in self.layers:
            c = x.shape[-1]
            x = nn.relu(norm()(conv(c, (3, 3), strides, feature_group_count=c)(x)))
            x = nn.relu(norm()(conv(width, (1, 1))(x)))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


NETS = {"resnet": ResNet(), "mobilenet": MobileNet()}
"""By the names that they have on the command line."""
