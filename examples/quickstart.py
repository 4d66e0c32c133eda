"""Train a small CNN in float, quantise it, and run it in int8 inside `jax.jit`.

    pip install '.[examples]'        # in a checkout
    python examples/quickstart.py

The data are the 1797 scanned digits that come with scikit-learn; nothing is downloaded.
On an NVIDIA GPU cuDNN runs the int8 convolutions; elsewhere the reference gives the same bytes,
without the speed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from jax_qconv import PackedConv, prepack, qconv, quantize

Params = dict[str, dict[str, jax.Array]]
BATCH = 64
MAX_LOSS = 0.01  # of accuracy, that quantisation may cost


# 1. A float model in plain JAX. It returns its activations too: quantisation looks at them.


def init_params(rng: np.random.Generator) -> Params:
    """Weights ``[R, S, C, K; float32]`` and biases ``[K; float32]``."""
    shapes = {
        "stem": (3, 3, 1, 16),
        "down": (3, 3, 16, 32),
        "mix": (3, 3, 32, 32),
        "head": (4, 4, 32, 10),  # as large as its input: a dense layer
    }
    params = {}
    for name, shape in shapes.items():
        weight = rng.normal(scale=np.sqrt(2 / np.prod(shape[:3])), size=shape)
        params[name] = {"weight": jnp.asarray(weight, jnp.float32), "bias": jnp.zeros(shape[3])}
    return params


def float_model(params: Params, image: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``[N, 8, 8, 1; float32]`` to logits ``[N, 10; float32]``, and the activations."""

    def conv(name: str, x: jax.Array, *, strides: int = 1, padding: str = "SAME") -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            params[name]["weight"],
            window_strides=(strides, strides),
            padding=padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + params[name]["bias"]

    stem = jax.nn.relu(conv("stem", image))
    down = jax.nn.relu(conv("down", stem, strides=2))
    mix = jax.nn.relu(conv("mix", down) + down)
    logits = conv("head", mix, padding="VALID")[:, 0, 0]
    return logits, {"image": image, "stem": stem, "down": down, "mix": mix}


def train(images: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int) -> Params:
    rng = np.random.default_rng(seed)
    params = init_params(rng)
    steps = len(images) // BATCH
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, epochs * steps))

    @jax.jit
    def update(params: Params, state: Any, x: jax.Array, y: jax.Array) -> tuple[Params, Any]:
        def loss(params: Params) -> jax.Array:
            logits, _ = float_model(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for _ in tqdm(range(epochs), desc="training", unit="epoch"):
        order = rng.permutation(len(images))[: steps * BATCH]
        for batch in order.reshape(steps, BATCH):
            params, state = update(params, state, images[batch], labels[batch])
    return params


# 2. Quantise it. Each activation gets one scale, from its largest value on training images;
#    `prepack` gives weights one scale per output channel; `bind` folds the scales together.


def quantise_model(params: Params, images: np.ndarray) -> dict[str, PackedConv]:
    _, activations = jax.jit(float_model)(params, images)
    scale = {name: jnp.abs(a).max() / 127 for name, a in activations.items()}
    return {
        "stem": prepack(**params["stem"]).bind(
            x_scale=scale["image"], out_scale=scale["stem"], activation="relu"
        ),
        "down": prepack(**params["down"], strides=2).bind(
            x_scale=scale["stem"], out_scale=scale["down"], activation="relu"
        ),
        "mix": prepack(**params["mix"]).bind(
            x_scale=scale["down"],
            residual_scale=scale["down"],
            out_scale=scale["mix"],
            activation="relu",
        ),
        # Without an out_scale the output is float32.
        "head": prepack(**params["head"], padding="VALID").bind(x_scale=scale["mix"]),
    }


# 3. Run it. Only int8 flows between the convolutions: bias, residual, ReLU and rounding are
#    part of them. Packs are pytrees, so they are arguments like any other parameters.


def int8_model(packs: dict[str, PackedConv], image: jax.Array) -> jax.Array:
    """``[N, 8, 8, 1; float32]`` to logits ``[N, 10; float32]``."""
    x = quantize(image, packs["stem"].binding.x_scale)
    x = qconv(x, packs["stem"])
    x = qconv(x, packs["down"])
    x = qconv(x, packs["mix"], residual=x)
    return qconv(x, packs["head"])[:, 0, 0]


def measure(
    model: Callable[..., jax.Array], params: Any, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Accuracy, size of all parameters, and time of the best of 20 runs over ``images``."""
    model, images = jax.jit(model), jnp.asarray(images)
    accuracy = float((model(params, images).argmax(-1) == labels).mean())
    times = []
    for _ in range(20):
        start = time.perf_counter()
        model(params, images).block_until_ready()
        times.append(time.perf_counter() - start)
    return {
        "accuracy": accuracy,
        "weight bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "us per image": min(times) / len(images) * 1e6,
    }


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (0)")
    parser.add_argument("--epochs", type=int, default=20, help="of training (20)")
    args = parser.parse_args()

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    params = train(x_train, y_train, epochs=args.epochs, seed=args.seed)
    packs = quantise_model(params, x_train)

    in_float = measure(lambda *args: float_model(*args)[0], params, x_test, y_test)
    in_int8 = measure(int8_model, packs, x_test, y_test)
    backend = jax.default_backend()
    print(f"backend {backend}, engine {'cudnn' if backend == 'gpu' else 'reference'}")
    print(f"{f'{len(x_test)} test images':16} {'float32':>10} {'int8':>10}")
    for name, form in {"accuracy": ".2%", "weight bytes": ",", "us per image": ".2f"}.items():
        print(f"{name:16} {in_float[name]:>10{form}} {in_int8[name]:>10{form}}")
    if in_float["accuracy"] - in_int8["accuracy"] > MAX_LOSS:
        return f"int8 loses more than {MAX_LOSS:.0%} accuracy."
    return 0


if __name__ == "__main__":
    sys.exit(main())
