"""An H100 to compile for, described by h100.txtpb."""

from __future__ import annotations

import functools
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TARGET = pathlib.Path(__file__).with_suffix(".txtpb")


@functools.cache
def mesh(devices: int = 1) -> Mesh:
    """A mesh of described H100s over the axis ``x``."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology=f"1x1x{devices}"
    )
    return topologies.make_mesh(topo=topology, mesh_shape=(devices,), axis_names=("x",))


EVERYWHERE = PartitionSpec()


def shapes(tree: Any, spec: PartitionSpec = EVERYWHERE, devices: int = 1) -> Any:
    """The arrays of a pytree as shapes on the described devices."""
    sharding = NamedSharding(mesh(devices), spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def compile(function: Any, *args: Any, dump_to: Any = None) -> str:
    """The optimised HLO of a function of described arrays; thunk lists go to ``dump_to``."""
    options: dict[str, Any] = {"xla_gpu_autotune_level": 0}
    if dump_to is not None:
        options["xla_dump_to"] = str(dump_to)
    return jax.jit(function).lower(*args).compile(compiler_options=options).as_text()


def instructions(hlo: str) -> list[str]:
    """The opcodes of the entry computation but those that cost nothing, in order."""
    entry = hlo[hlo.index("\nENTRY ") :]
    # name = type opcode(operands), where the type may be a tuple of types.
    opcodes = re.findall(r" = (?:\(.*?\)|\S+) ([\w-]+)\(", entry)
    free = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast"}
    return [opcode for opcode in opcodes if opcode not in free]
