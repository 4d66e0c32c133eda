"""Which layers of a network lose the most by running in int8."""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._columns import columns
from jax_qconv._conv_node import ConvNode
from jax_qconv._equalise import divided
from jax_qconv._network import Network
from jax_qconv._noise import Sums, over
from jax_qconv._packed_conv import PackedConv
from jax_qconv._quantize_model import QuantizedModel
from jax_qconv._rules import Rule
from jax_qconv._spec import is_int
from jax_qconv._values import Quantisation, Values


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How much damage each layer of a network does alone. Its text is a table.

    Attributes:
        sqnr_db: by the name of the layer, signal over noise of the network's outputs when that
            layer alone runs in int8; the worst layer comes first.
    """

    sqnr_db: dict[str, float]

    def worst(self, count: int) -> list[Rule]:
        """Rules that leave so many of the worst layers real.

        Args:
            count: from 0 to the number of layers.

        Returns:
            Rules for `quantize_model`.
        """
        if not is_int(count) or not 0 <= count <= len(self.sqnr_db):
            raise ValueError(
                f"count must be a number of layers from 0 to {len(self.sqnr_db)}, got {count!r}."
            )
        return [Rule(glob.escape(name), skip=True) for name in [*self.sqnr_db][:count]]

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __str__(self) -> str:
        rows = [(name, f"{db:.1f}") for name, db in self.sqnr_db.items()]
        return columns(("layer", "SQNR dB"), rows, numbers=("SQNR dB",))


def sensitivity(
    model: QuantizedModel, parameters: Any, batches: Iterable[Any], *, progress: bool = True
) -> Sensitivity:
    """Rank the layers of a network by the damage that each does alone.

    For each layer the network runs in float but for this one layer, whose input (and residual) and
    weights are int8; the outputs are compared with those of the float network. What the layer's
    output loses when it becomes int8 is counted where it is read. The network is compiled once,
    whatever the number of layers, and runs as often as there are layers, for each batch.

    Args:
        model: from `quantize_model`.
        parameters: the float ones that it was made of.
        batches: data, as `quantize_model` takes it, in one pass and not kept.
        progress: whether to show it on stderr.

    Returns:
        A `Sensitivity`.

    Raises:
        TypeError: if ``batches`` is a single batch.
        ValueError: without data.
    """
    run = jax.jit(functools.partial(_outputs, model))
    sums = jax.jit(Sums.of_all)
    layers = {
        node.name: _with_float_output(model.params["layers"][node.name], dtype)
        for node, dtype in _layers(model)
    }
    names = _names(next(iter(model.networks.values())))
    count = 0

    def of_batch(data: tuple[Any, ...]) -> dict[str, Sums]:
        nonlocal count
        count += 1
        wanted = run(parameters, layers, data, jnp.int32(-1))
        found = {}
        for i, name in enumerate(names):
            outputs = run(parameters, layers, data, jnp.int32(i))
            found[name] = jax.device_get(sums(wanted, outputs))
            if progress:
                told = f"\rsensitivity: batch {count}, {i + 1} of {len(names)} layers"
                print(told, end="", file=sys.stderr, flush=True)
        return found

    found = over(batches, of_batch)
    if progress:
        print(file=sys.stderr)
    worst_first = sorted(names, key=lambda name: found[name].sqnr_db)
    return Sensitivity({name: found[name].sqnr_db for name in worst_first})


def _layers(model: QuantizedModel) -> Iterator[tuple[ConvNode, Any]]:
    """Those of the network, and the dtypes of their float outputs."""
    network = next(iter(model.networks.values()))
    for node in network.layers:
        yield node, network.graph.avals[node.out].dtype


def _names(network: Network) -> list[str]:
    """One for all calls of a layer, which rules can't tell apart."""
    return list(dict.fromkeys(node.info.name for node in network.layers))


def _with_float_output(packed: PackedConv, dtype: Any) -> PackedConv:
    """Bound to the same scales, but for an output in real units."""
    bound = packed.binding
    assert bound is not None
    slopes = bound.constants.slopes
    return packed.bind(
        x_scale=bound.x_scale,
        x_zero_point=bound.x_zero_point,
        residual_scale=bound.residual_scale,
        residual_zero_point=bound.residual_zero_point,
        residual_mode=bound.epilogue.residual_mode,
        activation=bound.activation,
        slopes=None if slopes is None else slopes[: packed.out_channels],
        out_dtype=dtype,
    )


def _outputs(
    model: QuantizedModel, parameters: Any, layers: dict[str, PackedConv], data: Any, alone: Any
) -> list[Any]:
    """Those of the network when the layer of a number, of `_names`, runs in int8; -1 for none."""
    network = model.network(*data)
    graph = network.graph
    known = dict(zip(graph.parameters, jax.tree.leaves(parameters), strict=True))
    values = Values(graph, known | dict(zip(graph.data, jax.tree.leaves(data), strict=True)))
    numbers = {name: i for i, name in enumerate(_names(network))}
    for node in network.nodes:
        if not isinstance(node, ConvNode):
            for place in node.places:
                values.run(place)
            continue
        run = functools.partial(_run, network, model, node, known, layers[node.name])
        inputs = {value: values.real(value) for value in node.inputs}
        # A condition, not a choice between two results: the branch that isn't taken costs nothing.
        is_alone = alone == numbers[node.info.name]
        branches = (functools.partial(run, in_int8=is_int8) for is_int8 in (True, False))
        values.set_real(node.out, jax.lax.cond(is_alone, *branches, inputs))
    return [values.real(ref) for ref in graph.outputs]


def _run(
    network: Network,
    model: QuantizedModel,
    node: ConvNode,
    known: dict[int, Any],
    packed: PackedConv,
    inputs: dict[int, Any],
    *,
    in_int8: bool,
) -> Any:
    """The real output of a layer for real inputs."""

    def quantisation(value: int) -> Quantisation:
        return model.calibration.quantisation[network.group[value]]

    graph, factors = network.graph, model.calibration.factors
    if not in_int8:
        values = Values(graph, known | inputs)
        for place in node.places:
            values.run(place)
        return values.real(node.out).astype(graph.avals[node.out].dtype)
    # What lies between equalised layers is divided, for the weights on both sides.
    inputs = {value: divided(x, factors.get(value)) for value, x in inputs.items()}
    values = Values(graph, known | inputs, quantisation)
    node.run(values, packed)
    y = values.real(node.out)
    if node.out in factors:
        y = y.astype(jnp.float32) * jnp.broadcast_to(factors[node.out], y.shape)
    return y.astype(graph.avals[node.out].dtype)
