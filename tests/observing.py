"""What tests of observers share: data, and what observers find in it, each compiled once."""

import functools

import jax
import numpy as np

BIN = 1 / 256
"""How wide a bin is, beside the numbers in it."""

RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=50_000).astype(np.float32)
HEAVY = RNG.standard_t(3, size=50_000).astype(np.float32)
UNIFORM = RNG.uniform(-1, 3, 50_000).astype(np.float32)


@functools.cache
def jitted(observer):
    return jax.jit(observer.update), jax.jit(observer.merge), jax.jit(observer.finish)


def seen(observer, *batches, channels=None):
    update, _, _ = jitted(observer)
    return functools.reduce(update, batches, observer.init(channels))


def found(observer, *batches, channels=None):
    return jitted(observer)[2](seen(observer, *batches, channels=channels))
