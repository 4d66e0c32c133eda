"""Calibration: a float network is shown data, and observers find the range of each int8 value."""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._network import Network, key_of
from jax_qconv._op_nodes import RealNode
from jax_qconv._range import scale_of
from jax_qconv._rules import RuleBook
from jax_qconv._values import Quantisation, Values


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What was learned of a network.

    Attributes:
        networks: what was found in the function, by the shapes of data.
        quantisation: scale and zero point (or None) of each group of int8 values.
        x_means: ``[C; float32]`` mean of each layer's input, by the layer's name; empty if it
            isn't wanted.
    """

    networks: dict[Any, Network]
    quantisation: dict[int, Quantisation]
    x_means: dict[str, Any]


def calibrate(
    find: Callable[..., Network],
    parameters: Any,
    batches: Iterable[Any],
    rules: RuleBook,
    *,
    means: bool,
    progress: bool,
) -> Calibration:
    """Show a network data, and learn how its int8 values are to be quantised.

    Args:
        find: the network for data of some shapes.
        parameters: float ones.
        batches: each an array, or a tuple of arguments.
        rules: whose observers are asked.
        means: whether to learn the mean of each layer's input.
        progress: whether to show it on stderr.
    """
    networks: dict[Any, Network] = {}
    states: dict[int, Any] | None = None
    sums: Any = None
    updates: dict[Any, Any] = {}
    count = 0
    for count, batch in enumerate(_checked(batches), 1):
        data = batch if isinstance(batch, tuple) else (batch,)
        key = key_of(data)
        if key not in networks:
            network = find(data=data)
            _check(network, networks, data)
            networks[key] = network
            observers = _observers(network, rules)
            updates[key] = jax.jit(functools.partial(_update, network, observers, means))
        if states is None:
            observers = _observers(networks[key], rules)
            states = {group: observer.init() for group, observer in observers.items()}
        states, found_means = updates[key](states, parameters, data)
        sums = found_means if sums is None else _averaged(sums, found_means)
        if progress:
            print(f"\rcalibration: {count} batches", end="", file=sys.stderr, flush=True)
    if progress and count:
        print(file=sys.stderr)
    if states is None:
        raise ValueError("batches is empty: calibration needs at least one batch of data.")
    network = next(iter(networks.values()))
    unused = rules.unused([*(layer.name for layer in network.layers), *network.skipped])
    if unused:
        warnings.warn(f"rules for {unused} fit no layer.", stacklevel=3)
    makers = _makers(network)
    found = {}
    for group, seen in _finished(_observers(network, rules), states).items():
        name = makers[group]
        if int(seen.not_finite):
            raise ValueError(
                f"{name} made {int(seen.not_finite)} values that aren't finite while it was "
                "calibrated; look for NaN in its data and weights."
            )
        scale, zero_point = scale_of(seen, asymmetric=rules.asymmetric(name))
        found[group] = np.asarray(scale), None if zero_point is None else np.asarray(zero_point)
    return Calibration(networks, found, {name: mean for name, (mean, _) in sums.items()})


def _averaged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Means of two parts of the data, each with its count, as those of both."""
    found = {}
    for name, (mean, count) in a.items():
        other, more = b[name]
        total = count + more
        found[name] = mean + (other - mean) * (more / total), total
    return found


def _finished(observers: dict[int, Any], states: dict[int, Any]) -> dict[int, Any]:
    """What each group's observer found; those of a kind are asked together."""
    alike: dict[Any, list[int]] = {}
    for group, observer in observers.items():
        alike.setdefault(observer, []).append(group)
    found = {}
    for observer, groups in alike.items():
        stacked = jax.tree.map(lambda *v: jnp.stack(v), *(states[group] for group in groups))
        ranges = jax.device_get(jax.jit(jax.vmap(observer.finish))(stacked))
        for i, group in enumerate(groups):
            found[group] = jax.tree.map(lambda v, i=i: v[i], ranges)
    return found


def _checked(batches: Iterable[Any]) -> Iterable[Any]:
    if hasattr(batches, "shape") or isinstance(batches, str | dict):
        raise TypeError(
            f"batches must be an iterable of batches, got {type(batches).__name__}; wrap a single "
            "batch in a list."
        )
    return batches


def _check(network: Network, networks: dict[Any, Network], data: Any) -> None:
    if not network.layers and not network.skipped:
        whys = {n.why for n in network.nodes if isinstance(n, RealNode) and n.why}
        raise ValueError(
            "the function has no convolution or product with weights that can run in int8"
            + (f" ({'; '.join(sorted(whys))})." if whys else ".")
        )
    for other in networks.values():
        network.check_like(other, jax.tree.map(jnp.shape, data))


def _makers(network: Network) -> dict[int, str]:
    """For each group a name: of the node that makes its first value, or of the data."""
    by_value = {getattr(n, "out", None): getattr(n, "name", "") for n in network.nodes}
    return {
        group: next(filter(None, (by_value.get(v) for v in values)), "the input")
        for group, values in network.observed.items()
    }


def _observers(network: Network, rules: RuleBook) -> dict[int, Any]:
    return {group: rules.observer(name) for group, name in _makers(network).items()}


def _update(
    network: Network,
    observers: dict[int, Any],
    means: bool,
    states: dict[int, Any],
    parameters: Any,
    data: Any,
) -> tuple[dict[int, Any], dict[str, Any]]:
    """The states after a batch, and the means of the layers' inputs with their counts."""
    values = Values.of_float(network.graph, parameters, data)
    found = {}
    for group, numbers in network.observed.items():
        state = states[group]
        for number in numbers:
            state = observers[group].update(state, values.real(number))
        found[group] = state
    of_layers = {}
    for layer in network.layers if means else ():
        x = layer.placement.x(values.real(layer.x)).astype(jnp.float32)
        pixels = x.reshape(-1, x.shape[-1])
        of_layers[layer.name] = pixels.mean(0), jnp.float32(len(pixels))
    return found, of_layers
