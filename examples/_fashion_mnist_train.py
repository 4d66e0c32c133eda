"""Training of the Fashion-MNIST networks, on whatever device JAX finds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _fashion_mnist_data import Split, scaled
from tqdm import tqdm

BATCH = 128
PEAK_RATE = 0.2
WEIGHT_DECAY = 5e-4
SHIFT = 2  # pixels, at most


def train(net: nn.Module, data: Split, *, epochs: int, seed: int) -> Iterator[dict[str, Any]]:
    """Train a network with one cycle of the learning rate.

    Args:
        net: with batch norm, called as ``net(x, train)``.
        data: to learn from.
        epochs: how often each photo is seen.
        seed: of weights, order and augmentation.

    Yields:
        The variables after each epoch, ``"params"`` and ``"batch_stats"``.
    """
    steps = len(data.labels) // BATCH
    rate = optax.cosine_onecycle_schedule(epochs * steps, PEAK_RATE)
    optimiser = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY, mask=_kernels),
        optax.sgd(rate, momentum=0.9, nesterov=True),
    )

    # All photos are on the device; a step is told which it takes.
    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, key: jax.Array, everything: Any, places: jax.Array) -> Any:
        variables, optimiser_state = state
        images, labels = (array[places] for array in everything)
        x = scaled(augment(key, images))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            given = {**variables, "params": params}
            logits, statistics = net.apply(given, x, True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), statistics

        params = variables["params"]
        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, params)
        params = optax.apply_updates(params, updates)
        return ({"params": params, **statistics}, optimiser_state), value

    everything = jnp.asarray(data.images), jnp.asarray(data.labels, jnp.int32)
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = net.init(init_key, scaled(everything[0][:1]))
    state = variables, optimiser.init(variables["params"])
    rng = np.random.default_rng(seed)
    with tqdm(total=epochs * steps, desc="training", unit="step") as progress:
        for epoch in range(epochs):
            order = rng.permutation(len(data.labels))[: steps * BATCH].reshape(steps, BATCH)
            for step, places in enumerate(order):
                now = jax.random.fold_in(key, epoch * steps + step)
                state, value = update(state, now, everything, places)
                if progress.update():  # shown only now and then: it waits for the device
                    progress.set_postfix(loss=f"{value:.3f}")
            yield jax.device_get(state[0])


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Photos ``[N, H, W, C]``, half of them mirrored, all shifted by up to `SHIFT` pixels."""
    n, h, w, c = images.shape
    flip_key, shift_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, shape=(n, 1, 1, 1))
    images = jnp.where(flip, images[:, :, ::-1], images)
    images = jnp.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    corners = jax.random.randint(shift_key, (n, 2), 0, 2 * SHIFT + 1)
    crop = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (h, w, c)))
    return crop(images, corners)


def _kernels(params: Any) -> Any:
    """Which parameters decay: those of convolutions and matrices."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
