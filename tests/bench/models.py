"""Time networks that `quantize_model` makes of plain Flax on this GPU, and JAX in bf16.

    python tests/bench/models.py --out tests/bench/results/h100

Random weights, real shapes. Writes models.json with every sample, again after each group of
systems, and goes on from one of the same commit, versions and device.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import time

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench import flax_nets, nets, resnet50_jax
from bench.flax_nets import NETS, SIZES
from bench.nets import Net
from bench.record import clocks, write
from bench.timing import GRAPH

from jax_qconv import QuantizedModel, quantize_model

CALIBRATION = dict.fromkeys(NETS, (4, 8)) | {"unet": (2, 2)}
"""Number of batches and images in each; more change scales, not speed."""

QUANTISED = (16, 32)
"""As CALIBRATION, of the quantisation that is timed."""

METHOD = f"""\
{nets.METHOD} int8 is what quantize_model makes of a float Flax network with its batch norms; it
gets float32 images, and quantises them. bf16 is the same network with batch norms folded into
weights and biases beforehand, weights and images in bf16. by_hand is int8 of resnet50.py, on int8
images, and bf16_blocks that in bf16 with the first layer as one of 4x4 on blocks of 2x2 pixels.
quantise_seconds is the wall clock around quantize_model with {QUANTISED[0]} batches of
{QUANTISED[1]} images in the host's memory, compilation and all."""


@functools.lru_cache(maxsize=1)
def variables(name: str) -> Any:
    """The float network's; those of one network are kept."""
    return flax_nets.random_variables(NETS[name], SIZES[name])


def _batches(name: str, count: int, batch: int) -> list[np.ndarray]:
    """Of random images."""
    return [flax_nets.images(batch, SIZES[name], seed) for seed in range(count)]


def quantised(name: str, batches: list[np.ndarray]) -> QuantizedModel:
    """A network, calibrated."""
    return quantize_model(NETS[name].apply, variables(name), batches, progress=False)


@functools.lru_cache(maxsize=1)
def model(name: str) -> QuantizedModel:
    """The int8 network; the last one is kept."""
    return quantised(name, _batches(name, *CALIBRATION[name]))


def _images(name: str, batch: int) -> jax.Array:
    return jnp.asarray(flax_nets.images(batch, SIZES[name]))


def _int8(name: str, batch: int, *, constants: bool = False) -> Net:
    return Net((model(name), model(name).params), _images(name, batch), constants=constants)


def _bf16(name: str, batch: int, *, graph: str | None, constants: bool = False) -> Net:
    net, params = flax_nets.folded(NETS[name], variables(name))
    params, x = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (params, _images(name, batch)))
    return Net((net.apply, params), x, graph=graph, constants=constants)


def _by_hand(batch: int, *, constants: bool) -> Net:
    return Net(resnet50_jax.int8_net(), resnet50_jax.images(batch), constants=constants)


def _bf16_blocks(batch: int, *, graph: str | None) -> Net:
    x = resnet50_jax.images(batch).astype(jnp.bfloat16)
    return Net(resnet50_jax.bf16_net(blocks=True), x, graph=graph)


def systems(name: str) -> nets.Systems:
    """Those of a network. int8's calls are put into CUDA graphs by default."""
    found: nets.Systems = {
        "int8": lambda n: _int8(name, n),
        "int8_constants": lambda n: _int8(name, n, constants=True),
        "bf16": lambda n: _bf16(name, n, graph=None),
        "bf16_graph": lambda n: _bf16(name, n, graph=GRAPH),
        # Flax's weights are HWIO, which XLA transposes in each call unless they are constants.
        "bf16_graph_constants": lambda n: _bf16(name, n, graph=GRAPH, constants=True),
    }
    if name == "resnet50":
        found |= {
            "by_hand": lambda n: _by_hand(n, constants=False),
            "by_hand_constants": lambda n: _by_hand(n, constants=True),
            "bf16_blocks": lambda n: _bf16_blocks(n, graph=None),
            "bf16_blocks_graph": lambda n: _bf16_blocks(n, graph=GRAPH),
        }
    return found


def exact(name: str, batch: int) -> bool:
    """Whether the int8 network's outputs are those of the reference, bit for bit."""
    return nets.exact((model(name), model(name).params), _images(name, batch))


def quantise_seconds(name: str) -> float:
    """How long `quantize_model` takes."""
    batches = _batches(name, *QUANTISED)
    jax.block_until_ready(variables(name))
    start = time.perf_counter()
    jax.block_until_ready(quantised(name, batches).params)
    return time.perf_counter() - start


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NETS, default=list(NETS), help="these only")
    parser.add_argument("--systems", nargs="+", help="these only, by their names in the file")
    parser.add_argument("--batch", type=int, nargs="+", default=[128], help="sizes (128)")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of models.json")
    args = parser.parse_args()
    path, results = nets.opened(args.out, "models", METHOD)
    models = results.setdefault("models", {})
    for name in args.models:
        print(name, flush=True)
        if name not in models:
            # First: nothing of it has been compiled yet.
            timed = {"quantise_seconds": quantise_seconds(name)} if name == "resnet50" else {}
            models[name] = timed | {"exact": exact(name, 2), "rows": []}
            write(path, results)
        ways, rows = systems(name), models[name]["rows"]
        chosen = [way for way in ways if args.systems is None or way in args.systems]
        if not chosen:
            return f"{name} has none of these systems, but {', '.join(ways)}."
        for _ in nets.timed(ways, rows, batches=args.batch, chosen=chosen, core=chosen):
            write(path, results | {"clocks_after": clocks()})
    wrong = [name for name, found in models.items() if not found["exact"]]
    return f"differ from the reference: {', '.join(wrong)}" if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
