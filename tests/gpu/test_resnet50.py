"""ResNet-50's convolutions at batch 128 against the reference on the same GPU."""

import dataclasses
import functools

import layers
import numpy as np
import oracle
import pytest
from cases import Case, Geometry


@pytest.mark.parametrize("layer", layers.RESNET50, ids=lambda layer: layer.name)
def test_resnet50_is_exact_at_batch_128(layer, account):
    geometry = Geometry(
        (1, layer.h, layer.w, layer.c),
        (layer.k, layer.r, layer.s, layer.c),
        (layer.stride, layer.stride),
        padding=layer.padding,
        pads=layer.padding,
    )
    activation = "relu" if layer.relu else "none"
    one = Case(geometry, residual=layer.residual, activation=activation)
    whole = dataclasses.replace(geometry, x_shape=(128, *geometry.x_shape[1:]))
    batch = BatchCase(whole, residual=layer.residual, activation=activation)
    got = batch.run(jit=True, bound=True, implementation="cudnn")
    account.same(got, batch.run(jit=True, bound=True, implementation="reference"))
    # The oracle would take minutes for all images: other tests hold the reference to it.
    oracle.assert_same(got[:1], one.expected())


class BatchCase(Case):
    """A batch made of one image, which alone sets the scales: the oracle sees no more of it."""

    @functools.cached_property
    def arguments(self):
        g = self.geometry
        one = Case(
            dataclasses.replace(g, x_shape=(1, *g.x_shape[1:])),
            residual=self.residual,
            activation=self.activation,
        ).arguments
        return one | {
            name: _repeat(one[name], g.x_shape[0]) for name in ("x", "residual") if name in one
        }


def _repeat(image, batch):
    """A batch in which no two images are equal: each is the first, rolled further."""
    flat = image[0].ravel()
    return np.stack([np.roll(flat, 977 * i) for i in range(batch)]).reshape(batch, *image.shape[1:])
