"""Calibration: a float network is shown data, and observers find the range of each int8 value."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._batches import arguments
from jax_qconv._conv_node import ConvNode
from jax_qconv._equalise import Factors, divided, equalised
from jax_qconv._layer_info import LayerInfo
from jax_qconv._moments import Moments
from jax_qconv._network import Network, key_of
from jax_qconv._op_nodes import RealNode
from jax_qconv._range import scale_of
from jax_qconv._rules import RuleBook
from jax_qconv._values import Quantisation, Values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What was learned of a network. A pytree.

    Attributes:
        quantisation: scale and zero point (or None) of each group of int8 values.
        factors: what the channels of equalised values are divided by.
        moments: of the inputs of those layers whose weights or biases are fitted to them, by name.
    """

    quantisation: dict[int, Quantisation]
    factors: Factors
    moments: dict[str, Moments]


def calibrate(
    find: Callable[..., Network],
    parameters: Any,
    batches: Iterable[Any],
    rules: RuleBook,
    *,
    equalise: bool,
    progress: bool,
) -> tuple[dict[Any, Network], Calibration]:
    """Show a network data, and learn how its int8 values are to be quantised.

    Args:
        find: the network for data of some shapes.
        parameters: float ones.
        batches: each an array, or a tuple of arguments.
        rules: that say what is to be learned.
        equalise: whether channels are equalised across layers.
        progress: whether to show it on stderr.

    Returns:
        What was found in the function, by the shapes of data; and what was learned.
    """
    networks: dict[Any, Network] = {}
    watches: dict[Any, _Watch] = {}
    updates: dict[Any, Any] = {}
    factors: Factors = {}
    state: Any = None
    count = 0
    for count, data in enumerate(arguments(batches), 1):
        key = key_of(data)
        if key not in networks:
            network = find(data=data)
            _check(network, networks, data)
            if equalise and not networks:
                factors = equalised(network, _weights(network, parameters))
            networks[key] = network
            watches[key] = _Watch(network, rules, factors)
            updates[key] = jax.jit(watches[key].update)
        if state is None:
            state = watches[key].init(parameters, data)
        state = updates[key](state, parameters, data)
        if progress:
            print(f"\rcalibration: {count} batches", end="", file=sys.stderr, flush=True)
    if progress and count:
        print(file=sys.stderr)
    if state is None:
        raise ValueError("batches is empty: calibration needs at least one batch of data.")
    watch = next(iter(watches.values()))
    network = watch.network
    unused = rules.unused(
        [*(layer.info for layer in network.layers), *network.skipped, *watch.makers.values()]
    )
    if unused:
        warnings.warn(f"rules for {unused} fit no layer.", stacklevel=3)
    ranges = {g: observer.finish(state.observed[g]) for g, observer in watch.observers.items()}
    found = {}
    for group, seen in jax.device_get(ranges).items():
        maker = watch.makers[group]
        if int(seen.not_finite):
            raise ValueError(
                f"{maker.name} made {int(seen.not_finite)} values that aren't finite while it was "
                "calibrated; look for NaN in its data and weights."
            )
        scale, zero_point = scale_of(seen, asymmetric=rules.asymmetric(maker))
        found[group] = np.asarray(scale), None if zero_point is None else np.asarray(zero_point)
    return networks, Calibration(found, factors, state.moments)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
    """States of observers by their groups, and moments by layers."""

    observed: dict[int, Any]
    moments: dict[str, Moments]


class _Watch:
    """What is looked at while a network computes.

    Args:
        network: for data of given shapes.
        rules: that say what is to be learned.
        factors: of the equalised values.
    """

    def __init__(self, network: Network, rules: RuleBook, factors: Factors) -> None:
        self.network, self.rules, self.factors = network, rules, factors
        self.makers = _makers(network)
        self.observers = {group: rules.observer(maker) for group, maker in self.makers.items()}

    def init(self, parameters: Any, data: Any) -> _Seen:
        """Nothing seen yet, of data of these shapes."""
        states = {group: observer.init() for group, observer in self.observers.items()}
        shapes = jax.eval_shape(
            lambda *args: self._moments(Values.of_float(self.network.graph, *args)),
            parameters,
            data,
        )
        return _Seen(states, jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes))

    def update(self, seen: _Seen, parameters: Any, data: Any) -> _Seen:
        """What was seen after one more batch."""
        values = Values.of_float(self.network.graph, parameters, data)
        states = {}
        for group, numbers in self.network.observed.items():
            states[group] = seen.observed[group]
            for number in numbers:
                x = divided(values.real(number), self.factors.get(number))
                states[group] = self.observers[group].update(states[group], x)
        new = self._moments(values)
        return _Seen(states, {name: seen.moments[name].merge(new[name]) for name in new})

    def _moments(self, values: Values) -> dict[str, Moments]:
        """Of the inputs of those layers that are fitted to them."""
        found = {}
        for layer in self.network.layers:
            second = self.rules.rounding(layer.info) == "compensated"
            if second or self.rules.corrects_bias(layer.info):
                found[layer.name] = Moments.of(layer, values, second=second)
        return found


def _weights(network: Network, parameters: Any) -> dict[str, Any]:
    """Real ones of each layer, with what is folded into them."""
    leaves = jax.tree.leaves(parameters)
    values = Values(network.graph, dict(zip(network.graph.parameters, leaves, strict=True)))
    return {layer.name: np.asarray(layer.weights(values)[0]) for layer in network.layers}


def _check(network: Network, networks: dict[Any, Network], data: Any) -> None:
    if not network.layers and not network.skipped:
        whys = {n.why for n in network.nodes if isinstance(n, RealNode) and n.why}
        raise ValueError(
            "the function has no convolution or product with weights that can run in int8"
            + (f" ({'; '.join(sorted(whys))})." if whys else ".")
        )
    for other in networks.values():
        network.check_like(other, jax.tree.map(jnp.shape, data))


def _makers(network: Network) -> dict[int, LayerInfo]:
    """For each group what makes its first value: a layer, an operation, or the input."""
    by_value = {node.out: node for node in network.nodes if not isinstance(node, RealNode)}
    found = {}
    for group, values in network.observed.items():
        node = next((by_value[v] for v in values if v in by_value), None)
        if node is None:
            found[group] = LayerInfo("the input", "input")
        elif isinstance(node, ConvNode):
            found[group] = node.info
        else:
            found[group] = LayerInfo(node.name, node.step.name)
    return found
