"""Two trained networks on the 10,000 test photos of Fashion-MNIST, in float32 and in int8.

    pip install '.[examples,flax]'        # in a checkout
    python examples/fashion_mnist.py      # says how to get the photos (31 MB)
    python examples/fashion_mnist.py train resnet --seed 0 --epochs 20

`quantize_model` gets the plain Flax function, its weights and 512 of the photos that it was
trained on; nothing is said to it of the networks. Trained weights are in `examples/weights`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _fashion_mnist_data import ROOT, DataError, Split, read_split, scaled
from _fashion_mnist_nets import NETS
from _fashion_mnist_train import train
from _fashion_mnist_weights import FOLDER, as_saved, load_weights, save_weights, weights_path
from tqdm import tqdm

from jax_qconv import quantize_model

BATCH = 500  # photos that are judged at once
CALIBRATION = 512  # photos that are shown to `quantize_model`
MAX_LOSS = 0.3  # points of accuracy
MIN_AGREEMENT = 98  # % of the photos


def measure(path: Path, training: Split, test: Split, **options: Any) -> dict[str, Any]:
    """Quantise a trained network, and judge both by the same photos.

    Args:
        path: of the weights; the JSON beside them names the network.
        training: photos, the first of which are for calibration.
        test: photos to judge by.
        options: of `quantize_model`.

    Returns:
        Of float and int8 the accuracy in %, ``"loss"`` in points, ``"agreement"`` in % of the
        photos, and ``"logit_sqnr_db"``, the logits' signal over the noise of quantisation.
    """
    variables, facts = load_weights(path)
    function = NETS[facts["net"]].apply
    shown = np.split(scaled(training.images[:CALIBRATION]), 4)
    model = quantize_model(function, variables, shown, progress=False, **options)
    exact = logits_of(function, variables, test.images, "float32")
    quantised = logits_of(model, model.params, test.images, "int8")
    return {"net": facts["net"], "seed": facts["seed"], "photos": len(test.labels)} | figures(
        test.labels, exact, quantised
    )


def figures(labels: np.ndarray, exact: np.ndarray, quantised: np.ndarray) -> dict[str, float]:
    """How good the logits ``[N, 10; float32]`` of both are; see `measure`."""
    in_float, in_int8 = (accuracy(logits, labels) for logits in (exact, quantised))
    noise = ((exact - quantised) ** 2).sum()
    return {
        "float_accuracy": in_float,
        "accuracy": in_int8,
        "loss": in_float - in_int8,
        "agreement": accuracy(quantised, exact.argmax(-1)),
        "logit_sqnr_db": float(10 * np.log10((exact**2).sum() / noise)),
    }


def logits_of(
    function: Callable[..., jax.Array], parameters: Any, images: np.ndarray, name: str
) -> np.ndarray:
    """``[N, 10; float32]`` for photos ``[N, 28, 28, 1; uint8]``, some at once."""
    run = jax.jit(function)
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    progress = tqdm(batches, desc=name, unit="batch", leave=False)
    return np.concatenate([run(parameters, jnp.asarray(scaled(batch))) for batch in progress])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """% of the photos."""
    return 100 * float((logits.argmax(-1) == labels).mean())


def compare(paths: list[Path], training: Split, test: Split) -> int | str:
    """Print a row per network; returns the exit status."""
    backend = jax.default_backend()
    print(f"backend {backend}, engine {'cudnn' if backend == 'gpu' else 'reference'}")
    row = "{:24} {:>9} {:>9} {:>9} {:>9} {:>9}".format
    title = f"{len(test.labels):,} test photos"
    print(row(title, "float32", "int8", "loss", "agree", "SQNR dB"))
    failed = []
    for path in paths:
        found = measure(path, training, test)
        name = f"{found['net']}, seed {found['seed']}"
        shares = [found[key] for key in ("float_accuracy", "accuracy", "agreement")]
        in_float, in_int8, agreement = (f"{share:.2f}%" for share in shares)
        decibels = f"{found['logit_sqnr_db']:.1f}"
        print(row(name, in_float, in_int8, f"{found['loss']:.2f}", agreement, decibels), flush=True)
        if found["loss"] > MAX_LOSS or found["agreement"] < MIN_AGREEMENT:
            failed.append(name)
    if failed:
        return (
            f"{' and '.join(failed)}: int8 loses more than {MAX_LOSS} points, or agrees with "
            f"float32 on less than {MIN_AGREEMENT}% of the photos."
        )
    return 0


def train_and_save(
    name: str, training: Split, test: Split, *, seed: int, epochs: int, out: Path
) -> None:
    """Train a network; its weights are saved after each epoch, as they are judged."""
    net, path = NETS[name], weights_path(out, name, seed)
    for epoch, variables in enumerate(train(net, training, epochs=epochs, seed=seed), 1):
        logits = logits_of(net.apply, as_saved(variables), test.images, "test photos")
        facts = {
            "net": name,
            "seed": seed,
            "epochs": epoch,
            "of_epochs": epochs,
            "accuracy": round(accuracy(logits, test.labels), 2),
        }
        save_weights(path, variables, facts)
        tqdm.write(f"epoch {epoch}: {facts['accuracy']:.2f}% of the test photos; wrote {path}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT, help=f"root of the package ({ROOT})")
    parser.add_argument("--photos", type=int, default=None, help="to judge by, the first so many")
    parser.set_defaults(net=None)
    training = parser.add_subparsers().add_parser("train", help="train a network, and save it")
    training.add_argument("net", choices=NETS)
    training.add_argument("--seed", type=int, default=0, help="of weights and batches (0)")
    training.add_argument("--epochs", type=int, default=20, help="of training (20)")
    training.add_argument("--out", type=Path, default=FOLDER, help=f"folder ({FOLDER})")
    return parser.parse_args()


def main() -> int | str:
    args = parse()
    try:
        training, test = (read_split(args.data, name) for name in ("train", "t10k"))
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    test = Split(test.images[: args.photos], test.labels[: args.photos])
    if args.net is None:
        return compare(sorted(FOLDER.glob("fashion_mnist_*.npz")), training, test)
    train_and_save(args.net, training, test, seed=args.seed, epochs=args.epochs, out=args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
