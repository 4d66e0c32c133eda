"""Time the whole of ResNet-50 on this GPU: int8 by jax_qconv, JAX in bf16, PyTorch, others.

    python tests/bench/resnet50.py --batch 128 1 --out tests/bench/results/h100

Random weights, real shapes. Writes resnet50.json with every sample, again after each group of
systems, and goes on from one of the same commit, versions and device.
"""

from __future__ import annotations

import os
import pathlib
import sys

if __name__ == "__main__":
    # PyTorch's systems need memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax.numpy as jnp
from bench import nets, resnet50_jax, resnet50_torch
from bench.nets import Net
from bench.resnet50_jax import OUT_SCALE, images
from bench.timing import GRAPH

METHOD = f"""\
{nets.METHOD} With _blocks, the first layer is one of 4x4 on blocks of 2x2 pixels. xla_int8 has int8
between all layers and the epilogues in jax.numpy, xla_int8_fused with XLA's experimental fusion of
convolutions; qwix has float32 between them. torch_bf16_compiled is that of torch.compile in a CUDA
graph."""


def exact(batch: int) -> bool:
    """Whether the int8 network's outputs are those of the reference, bit for bit."""
    return nets.exact(resnet50_jax.int8_net(), images(batch))


def _int8(batch: int, *, graph: str | None, constants: bool = False) -> Net:
    return Net(resnet50_jax.int8_net(), images(batch), graph=graph, constants=constants)


def _bf16(batch: int, *, blocks: bool, graph: str | None, constants: bool = False) -> Net:
    net, x = resnet50_jax.bf16_net(blocks=blocks), images(batch).astype(jnp.bfloat16)
    return Net(net, x, graph=graph, constants=constants)


def _xla_int8(batch: int, *, fused: bool) -> Net:
    options = {"xla_gpu_experimental_enable_conv_fusion": True} if fused else {}
    return Net(resnet50_jax.xla_int8_net(), images(batch), graph=GRAPH, options=options)


def _qwix(batch: int) -> Net:
    x = images(batch).astype(jnp.float32) * OUT_SCALE
    return Net(resnet50_jax.qwix_net(), x, graph=GRAPH)


NETS: nets.Systems = {
    "int8": lambda n: _int8(n, graph=None),
    "int8_constants": lambda n: _int8(n, graph=None, constants=True),
    "bf16": lambda n: _bf16(n, blocks=False, graph=None),
    "bf16_graph": lambda n: _bf16(n, blocks=False, graph=GRAPH),
    "bf16_blocks": lambda n: _bf16(n, blocks=True, graph=None),
    "bf16_blocks_graph": lambda n: _bf16(n, blocks=True, graph=GRAPH),
    "bf16_blocks_graph_constants": lambda n: _bf16(n, blocks=True, graph=GRAPH, constants=True),
    "seed": lambda n: resnet50_torch.seed(n),
    "torch_bf16_graph": lambda n: resnet50_torch.bf16(n, graph=True),
    "torch_bf16": lambda n: resnet50_torch.bf16(n, graph=False),
    "torch_bf16_compiled": lambda n: resnet50_torch.bf16(n, graph=True, compiled=True),
    "int8_without_graph": lambda n: _int8(n, graph=""),
    "xla_int8": lambda n: _xla_int8(n, fused=False),
    "xla_int8_fused": lambda n: _xla_int8(n, fused=True),
    "qwix": lambda n: _qwix(n),
}
"""The systems, the ones that matter most first. int8's calls are put into CUDA graphs by default.
The seed is PyTorch's quantized::conv2d, in eager mode, which is all it has."""

CORE = tuple(NETS)[:8]
"""Timed by turns, all of them."""


def main() -> int | str:
    return nets.main(
        "resnet50", NETS, core=CORE, batches=(128, 1), exact=lambda: exact(2), method=METHOD
    )


if __name__ == "__main__":
    sys.exit(main())
