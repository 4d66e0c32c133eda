"""Time the whole of EfficientNet-Lite0 on this GPU: int8 by jax_qconv, and JAX in bf16.

    python tests/bench/efficientnet.py --batch 128 1 --out tests/bench/results/h100

Random weights, real shapes. Writes efficientnet_lite0.json with every sample, again after each
group of systems, and goes on from one of the same commit, versions and device.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax.numpy as jnp
from bench import nets
from bench.efficientnet_jax import OUT_SCALE, bf16_net, int8_net
from bench.kind_systems import MERGED_CHANNELS
from bench.nets import Net
from bench.resnet50_jax import images
from bench.timing import GRAPH

METHOD = f"""\
{nets.METHOD} int8_merged has depthwise channels merged into dense blocks of up to
{MERGED_CHANNELS}; int8_coarse has channels padded by the rule of prepack, which sees one layer;
with _shifts, JAX's depthwise convolutions are sums of shifted images, each one loop of XLA's.
bf16 is compared by the fastest of its ways."""


def exact(batch: int) -> bool:
    """Whether the int8 network's outputs are those of the reference, bit for bit."""
    return nets.exact(int8_net(), images(batch))


def _bf16(batch: int, *, shifts: bool, graph: str | None) -> Net:
    x = images(batch).astype(jnp.bfloat16) * jnp.bfloat16(OUT_SCALE)
    return Net(bf16_net(shifts=shifts), x, graph=graph)


NETS: nets.Systems = {
    "int8": lambda n: Net(int8_net(), images(n)),
    "bf16": lambda n: _bf16(n, shifts=False, graph=None),
    "bf16_graph": lambda n: _bf16(n, shifts=False, graph=GRAPH),
    "bf16_shifts": lambda n: _bf16(n, shifts=True, graph=None),
    "bf16_shifts_graph": lambda n: _bf16(n, shifts=True, graph=GRAPH),
    "int8_coarse": lambda n: Net(int8_net(fine=False), images(n)),
    "int8_merged": lambda n: Net(int8_net(merged=MERGED_CHANNELS), images(n)),
    "int8_without_graph": lambda n: Net(int8_net(), images(n), graph=""),
}
"""The systems. int8's calls are put into CUDA graphs by default."""


def main() -> int | str:
    return nets.main(
        "efficientnet_lite0",
        NETS,
        core=tuple(NETS),
        batches=(128, 1),
        exact=lambda: exact(2),
        method=METHOD,
    )


if __name__ == "__main__":
    sys.exit(main())
