"""SqueezeNet v1.1 on ImageNet photos with all 26 convolutions in int8, held against float32.

    pip install 'jax_qconv[examples]'
    python examples/squeezenet.py    # says how to get the weights and the photos (6.4 MB)

Scales are data: each photo is run with scales calibrated on the other 19, by one compiled
program. Between the convolutions there is nothing but int8: pooling it is exact, and so is
concatenating two tensors that share a scale.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
from _squeezenet_data import DataError, check_archives, read_photos, read_weights
from tqdm import tqdm

from jax_qconv import PackedConv, QTensor, prepack, qconv, quantize

Weights = dict[str, list[np.ndarray]]
PERCENTILE = 99.99  # of a photo's absolute activations; what is larger saturates
MIN_AGREEMENT = 18  # of the 20 top-1 classes
DEFAULT_DATA = platformdirs.user_cache_path("jax_qconv") / "examples"


def squeezenet(x: Any, conv: Callable[[str, Any], Any]) -> jax.Array:
    """The network, written once: ``conv(name, x)`` applies a convolution, float or int8.

    Args:
        x: ``[N, 227, 227, 3]``, a float array or a `QTensor`.
        conv: includes bias and, but for ``conv10``, ReLU.

    Returns:
        Logits ``[N, 1000; float32]``.
    """
    x = max_pool(conv("conv1", x))
    for fire in range(2, 10):
        if fire in (4, 6):
            x = max_pool(x)
        x = conv(f"fire{fire}/squeeze1x1", x)
        x = concatenate(conv(f"fire{fire}/expand1x1", x), conv(f"fire{fire}/expand3x3", x))
    return conv("conv10", x).mean((1, 2))


def max_pool(x: Any) -> Any:
    """3x3 windows, stride 2. The largest integer is that of the largest real number."""
    if isinstance(x, QTensor):
        return dataclasses.replace(x, values=max_pool(x.values))
    lowest = -128 if x.dtype == jnp.int8 else -jnp.inf
    init = np.array(lowest, x.dtype)
    return jax.lax.reduce_window(x, init, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def concatenate(a: Any, b: Any) -> Any:
    """Along channels; two `QTensor`s must have equal scales."""
    if isinstance(a, QTensor):
        return QTensor(concatenate(a.unpadded(), b.unpadded()), a.scale)
    return jnp.concatenate([a, b], axis=-1)


def strides(name: str) -> int:
    return 2 if name == "conv1" else 1


def scale_name(name: str) -> str:
    """Name of the scale of a convolution's output; both halves of a concatenation share one."""
    return re.sub("expand.x.", "expand", name)


@jax.jit
def run_float(weights: Weights, image: jax.Array) -> tuple[jax.Array, dict[str, list[jax.Array]]]:
    """Logits ``[1000; float32]``, and the activations under the names of their scales."""
    activations = {"image": [image]}

    def conv(name: str, x: jax.Array) -> jax.Array:
        weight, bias = weights[name]
        y = bias + jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(strides(name),) * 2,
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        if name == "conv10":
            return y
        activations.setdefault(scale_name(name), []).append(jax.nn.relu(y))
        return jax.nn.relu(y)

    return squeezenet(image, conv)[0], activations


@jax.jit
def run_int8(
    packs: dict[str, PackedConv], scales: dict[str, jax.Array], image: jax.Array
) -> jax.Array:
    """Logits ``[1000; float32]``."""

    def conv(name: str, x: QTensor) -> QTensor | jax.Array:
        if name == "conv10":
            return qconv(x, packs[name])
        return qconv(x, packs[name], out_scale=scales[scale_name(name)], activation="relu")

    return squeezenet(quantize(image, scales["image"]), conv)[0]


def clip_range(tensors: list[np.ndarray]) -> float:
    """Where to clip tensors that share a scale: the largest of their percentiles."""
    return max(float(np.percentile(np.abs(t), PERCENTILE)) for t in tensors)


def signal_to_noise(exact: np.ndarray, approximate: np.ndarray) -> np.ndarray:
    """Decibels of each row, its mean left out: a shift of all logits changes no probability."""
    return 10 * np.log10(np.var(exact, axis=-1) / np.var(approximate - exact, axis=-1))


def scales_without(ranges: list[dict[str, float]], photo: int) -> dict[str, float]:
    """Scales that cover the ranges of all photos but one, which isn't looked at."""
    others = ranges[:photo] + ranges[photo + 1 :]
    return {name: max(r[name] for r in others) / 127 for name in others[0]}


def report(labels: np.ndarray, in_float: np.ndarray, in_int8: np.ndarray) -> int:
    """Print a row per photo and the totals.

    Args:
        labels: ``[photos; int]``.
        in_float, in_int8: logits ``[photos, 1000; float32]``.

    Returns:
        The number of photos on whose top-1 class both agree.
    """
    exact, quantised = (np.argsort(-logits, axis=-1)[:, :5] for logits in (in_float, in_int8))
    agree = exact[:, 0] == quantised[:, 0]
    decibels = signal_to_noise(in_float, in_int8)

    row = "{:>5} {:>6} {:>9} {:>6} {:>6} {:>14} {:>6} {:>9}".format
    print(row("photo", "label", "float32", "int8", "agree", "top-5: float32", "int8", "SQNR dB"))
    for i, label in enumerate(labels):
        facts = agree[i], label in exact[i], label in quantised[i]
        yes_no = ["yes" if fact else "no" for fact in facts]
        print(row(i, label, exact[i, 0], quantised[i, 0], *yes_no, f"{decibels[i]:.1f}"))

    print(f"\n{'':14} {'float32':>10} {'int8':>10}")
    for name, depth in {"top-1": 1, "top-5": 5}.items():
        hits = [(top5[:, :depth] == labels[:, None]).sum() for top5 in (exact, quantised)]
        print(f"{name:14}" + "".join(f" {f'{n}/{len(labels)}':>10}" for n in hits))
    print(f"top-1 classes agree on {agree.sum()}/{len(labels)}")
    print(f"mean logit SQNR: {decibels.mean():.1f} dB")
    return int(agree.sum())


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, help=f"folder of the archives ({DEFAULT_DATA})"
    )
    folder = parser.parse_args().data
    try:
        check_archives(folder)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    photos, weights = read_photos(folder), jax.device_put(read_weights(folder))
    packs = {name: prepack(w, b, strides=strides(name)) for name, (w, b) in weights.items()}

    in_float, ranges, in_int8 = [], [], []
    for photo in tqdm(photos, desc="float32, calibration", unit="photo"):
        logits, activations = jax.device_get(run_float(weights, photo.image))
        in_float.append(logits)
        ranges.append({name: clip_range(tensors) for name, tensors in activations.items()})
    for i, photo in enumerate(tqdm(photos, desc="int8", unit="photo")):
        in_int8.append(np.asarray(run_int8(packs, scales_without(ranges, i), photo.image)))

    backend = jax.default_backend()
    print(f"backend {backend}, engine {'cudnn' if backend == 'gpu' else 'reference'}")
    float_bytes, int8_bytes = (sum(v.nbytes for v in jax.tree.leaves(t)) for t in (weights, packs))
    print(f"{len(packs)} convolutions, {float_bytes:,} bytes in float32, {int8_bytes:,} in int8\n")
    labels = np.array([photo.label for photo in photos])
    agreement = report(labels, np.stack(in_float), np.stack(in_int8))
    if agreement < MIN_AGREEMENT:
        return f"int8 agrees with float32 on {agreement} photos only; {MIN_AGREEMENT} are expected."
    return 0


if __name__ == "__main__":
    sys.exit(main())
