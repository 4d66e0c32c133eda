"""How near `quantize_model` comes to real float networks: SqueezeNet and EfficientNet-Lite0.

    python tests/bench/accuracy.py --data DIR --out tests/bench/results/accuracy

DIR has the archives that examples/squeezenet.py and examples/efficientnet_lite.py ask for. Each of
the 20 photos is run by a network that was calibrated on the 15 photos of the other three quarters.
Nothing is said of the networks but their float functions. Runs on a CPU; writes accuracy.json.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import sys
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

import efficientnet_lite
import jax
import jax.numpy as jnp
import numpy as np
import squeezenet
from _efficientnet_data import preprocess as lite_input
from _efficientnet_data import read_weights as lite_weights
from _photos import read_photos
from _squeezenet_data import SIZE as SQUEEZENET_SIZE
from _squeezenet_data import preprocess as squeezenet_input
from _squeezenet_data import read_weights as squeezenet_weights
from bench.record import commit, write

import jax_qconv

FOLDS = 4

OPTIONS: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "asymmetric": {"asymmetric": True},
    "asymmetric_corrected": {"asymmetric": True, "bias_correction": True},
}
"""Of `quantize_model`, by name."""


def squeezenet_logits(weights: Any, image: jax.Array) -> jax.Array:
    """``[1, 1000]``"""
    return squeezenet.run_float(weights, image)[0][None]


def lite_logits(weights: Any, image: jax.Array) -> jax.Array:
    """``[1, 1000]``"""
    return efficientnet_lite.run_float(weights, image)[0][None]


NETWORKS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], int]] = {
    "squeezenet": (squeezenet_logits, squeezenet_weights, squeezenet_input, SQUEEZENET_SIZE),
    "efficientnet_lite0": (lite_logits, lite_weights, lite_input, 224),
}
"""By name: the float function, its weights, its input of a photo, and the photo's size."""


def measure(name: str, folder: pathlib.Path, options: dict[str, Any]) -> dict[str, Any]:
    """The figures of a network."""
    function, read, prepare, size = NETWORKS[name]
    weights = jax.device_put(read(folder))
    photos = read_photos(folder, size=size)
    inputs = [jnp.atleast_3d(prepare(photo.image)) for photo in photos]
    inputs = [x if x.ndim == 4 else x[None] for x in inputs]
    labels = np.array([photo.label for photo in photos])
    wanted = np.concatenate([np.asarray(function(weights, x)) for x in inputs])
    got = np.zeros_like(wanted)
    for fold in range(FOLDS):
        shown = [x for i, x in enumerate(inputs) if i % FOLDS != fold]
        model = jax_qconv.quantize_model(function, weights, shown, progress=False, **options)
        run = jax.jit(model)
        for i in range(fold, len(inputs), FOLDS):
            got[i] = np.asarray(run(model.params, inputs[i]))[0]
    signal, noise = (wanted**2).sum(1), ((wanted - got) ** 2).sum(1)
    sqnr = 10 * np.log10(signal / noise)
    return {
        "photos": len(labels),
        "float_top1": int((wanted.argmax(1) == labels).sum()),
        "int8_top1": int((got.argmax(1) == labels).sum()),
        "same_top1": int((wanted.argmax(1) == got.argmax(1)).sum()),
        "mean_logit_sqnr_db": round(float(sqnr.mean()), 2),
        "least_logit_sqnr_db": round(float(sqnr.min()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the archives")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of accuracy.json")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "observer": "mse",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        for options, chosen in OPTIONS.items():
            found[f"{name}.{options}"] = measure(name, args.data, chosen)
            print(name, options, found[f"{name}.{options}"], flush=True)
            write(args.out / "accuracy.json", found)


if __name__ == "__main__":
    main()
