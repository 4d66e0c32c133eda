"""ResNet-50's convolutions at batch 128 against the reference on the same GPU."""

import dataclasses
import functools

import layers
import numpy as np
import oracle
import pytest
from cases import Case


@pytest.mark.parametrize("layer", layers.RESNET50, ids=lambda layer: layer.name)
def test_resnet50_is_exact_at_batch_128(layer, account):
    batch = BatchCase.of_layer(layer, batch=128)
    got = batch.run(jit=True, bound=True, implementation="cudnn")
    account.same(got, batch.run(jit=True, bound=True, implementation="reference"))
    # The oracle would take minutes for all images: other tests hold the reference to it.
    oracle.assert_same(got[:1], Case.of_layer(layer).expected())


class BatchCase(Case):
    """A batch made of one image, which alone sets the scales: the oracle sees no more of it."""

    @functools.cached_property
    def arguments(self):
        n, *image = self.geometry.x_shape
        geometry = dataclasses.replace(self.geometry, x_shape=(1, *image))
        one = Case(geometry, residual=self.residual, activation=self.activation).arguments
        return one | {name: _repeat(one[name], n) for name in ("x", "residual") if name in one}


def _repeat(image, batch):
    """A batch in which no two images are equal: each is the first, rolled further."""
    flat = image[0].ravel()
    return np.stack([np.roll(flat, 977 * i) for i in range(batch)]).reshape(batch, *image.shape[1:])
