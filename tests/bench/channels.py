"""Time cuDNN's own suggestions over channel counts: what `padded_channels` is fitted to.

    python tests/bench/channels.py --out tests/bench/results/h200

Writes channels.json: for each C = K, 56 x 56, 3x3 at batch 64 and 1x1 at batch 128, the fastest
exact plan of the search that a first call makes, and all others with their times.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
from bench.record import origin, write
from tqdm import tqdm

from jax_qconv import _native
from jax_qconv._problem import Problem

CHANNELS = (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 68, 72, 80, 96, 112, 128, 144, 160)
CHANNELS += (192, 224, 256)
SIZE = 56
BATCHES = {1: 128, 3: 64}  # by kernel size


def problem(channels: int, kernel: int) -> Problem:
    """A convolution from so many channels to as many, stored unpadded."""
    return Problem.make(
        x_shape=(BATCHES[kernel], SIZE, SIZE, channels),
        w_shape=(channels, kernel, kernel, channels),
        strides=(1, 1),
        padding="SAME",
        dilation=(1, 1),
        groups=1,
        out_dtype="int8",
        activation="relu",
        slope=0.0,
        residual=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of channels.json")
    out = parser.parse_args().out
    device = jax.devices("cuda")[0]
    extension = _native.extension()
    rows = []
    for kernel, channels in tqdm([(k, c) for k in BATCHES for c in CHANNELS]):
        ranking = extension.search(str(problem(channels, kernel)), device.local_hardware_id)
        exact = [plan for plan in ranking if plan["us"] is not None]
        best = min(exact, key=lambda plan: plan["us"], default=None)
        rows.append({"kernel": kernel, "channels": channels, "best": best, "plans": ranking})
    out.mkdir(parents=True, exist_ok=True)
    write(out / "channels.json", origin(device) | {"rows": rows})


if __name__ == "__main__":
    main()
