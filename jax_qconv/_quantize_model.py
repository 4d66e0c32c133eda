"""`quantize_model`: a float network, shown a few batches, becomes an int8 one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._arrays import is_concrete
from jax_qconv._calibrate import Calibration, calibrate
from jax_qconv._conv_node import ConvNode
from jax_qconv._graph import trace
from jax_qconv._network import Network, key_of, names_of
from jax_qconv._observers import Observer
from jax_qconv._op_nodes import OpNode
from jax_qconv._packing import packed_layer
from jax_qconv._rules import Rule, RuleBook
from jax_qconv._values import Quantisation, Values

_SUFFIXES = ("/kernel", "/weight", "/w", "/embedding")


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A network whose convolutions run in int8; made by `quantize_model`.

    Call it as the float function, with packed parameters: ``model(model.params, x)``, under
    `jax.jit` or not.

    Attributes:
        function: the float function.
        params: packed parameters: a pytree of ``"layers"``, a `PackedConv` for each layer,
            ``"scales"`` and ``"zero_points"`` of values between them, and ``"real"``, parameters
            that are used as they are.
        calibration: what was learned from data.
        networks: what was found in the function, by the shapes of data.
        parameter_shapes: shapes and dtypes of the float parameters.
        rules: that it was made by.
    """

    function: Callable[..., Any]
    params: dict[str, Any]
    calibration: Calibration
    networks: dict[Any, Network]
    parameter_shapes: Any
    rules: RuleBook

    def __call__(self, params: dict[str, Any], *data: Any, **engine: Any) -> Any:
        """The result of the network in int8.

        Args:
            params: packed parameters.
            data: as the float function takes it.
            engine: ``implementation=`` and ``autotune=`` of `qconv`.

        Raises:
            ValueError: if ``params`` aren't like those that were packed (naming the first that
                differs), or if the function does other things for such data.
        """
        values = self.run(params, *data, **engine)
        graph = values.graph
        outs = [values.real(ref) for ref in graph.outputs]
        return jax.tree.unflatten(graph.out_tree, outs)

    def run(self, params: dict[str, Any], *data: Any, **engine: Any) -> Values:
        """All values of the network, as `__call__` computes them."""
        _check_like("params", params, self.params, "take model.params or what model.pack returns")
        network = self.network(*data)
        graph = network.graph

        def quantisation(value: int) -> Quantisation:
            key = str(network.group[value])
            return params["scales"][key], params["zero_points"].get(key)

        known = dict(zip(graph.data, jax.tree.leaves(data), strict=True))
        known |= {number: params["real"][name] for number, name in self._real(network)}
        values = Values(graph, known, quantisation)
        for node in network.nodes:
            if isinstance(node, ConvNode):
                node.run(values, params["layers"][node.name], **engine)
            elif isinstance(node, OpNode) and network.runs_in_int8(node):
                out = (None, None) if node.keeps_scale else quantisation(node.out)
                node.run(values, out)
            else:
                for place in node.places:
                    values.run(place)
        return values

    def pack(self, parameters: Any) -> dict[str, Any]:
        """Packed parameters for float ones, at the scales of the calibration. Can be jitted.

        Raises:
            ValueError: if they aren't like those of the calibration (naming the first that
                differs), or aren't finite (naming the layer).
        """
        _check_like(
            "parameters", parameters, self.parameter_shapes, "they are those of another network"
        )
        if not all(map(is_concrete, jax.tree.leaves(parameters))):
            return self._packed(parameters, self.calibration)[0]
        # As constants of the program, scales would have it compiled again for each of them; on the
        # devices that calibration used, they would be in the way of other ones.
        packed, finite = jax.jit(self._packed)(parameters, jax.device_get(self.calibration))
        for name, good in finite.items():
            if not good:
                raise ValueError(
                    f"{name} has weights that are NaN or infinite, or become so where the batch "
                    "norm or bias after it is folded in."
                )
        return packed

    def _packed(
        self, parameters: Any, calibration: Calibration
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Packed parameters, and for each layer whether its weights are finite."""
        # The same bytes, whether it is made of constants or of arguments.
        calibration = jax.lax.optimization_barrier(calibration)
        network = next(iter(self.networks.values()))
        graph = network.graph
        leaves = jax.tree.leaves(parameters)
        values = Values(graph, dict(zip(graph.parameters, leaves, strict=True)))
        layers, finite = {}, {}
        for node in network.layers:
            layers[node.name], finite[node.name] = packed_layer(
                node, network, values, calibration, self.rules
            )
        found = {str(group): calibration.quantisation[group] for group in network.rescaled}
        packed = {
            "layers": layers,
            "scales": {key: jnp.float32(scale) for key, (scale, _) in found.items()},
            "zero_points": {key: jnp.int32(z) for key, (_, z) in found.items() if z is not None},
            "real": {name: values.real(number) for number, name in self._real(network)},
        }
        return packed, finite

    def network(self, *data: Any) -> Network:
        """What was found in the function, for data of these shapes."""
        key = key_of(data)
        if key not in self.networks:
            network = analyse(self.function, self.parameter_shapes, data, self.rules)
            first = next(iter(self.networks.values()))
            network.check_like(first, jax.tree.map(jnp.shape, data))
            self.networks[key] = network
        return self.networks[key]

    def _real(self, network: Network) -> list[tuple[int, str]]:
        names = names_of(self.parameter_shapes, network.graph)
        return [(number, names[number]) for number in sorted(network.real_parameters)]


def analyse(
    function: Callable[..., Any], parameters: Any, data: tuple[Any, ...], rules: RuleBook
) -> Network:
    """What there is in a function."""
    graph = trace(function, parameters, *data)
    names = {number: _layer_name(path) for number, path in names_of(parameters, graph).items()}
    return Network.make(graph, names, rules.skips, lambda layer: rules.out_dtype(layer) is not None)


def _check_like(name: str, tree: Any, like: Any, remedy: str) -> None:
    """Raise ValueError unless a tree has the structure, shapes and dtypes of another."""
    found, wanted = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(one)}
        for one in (tree, like)
    )
    for path in (*wanted, *found):
        if path not in found or path not in wanted:
            problem = "is missing" if path not in found else "is none of the network's"
            raise ValueError(f"{name}{path} {problem}; {remedy}.")
        sides = [
            f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
            for leaf in (found[path], wanted[path])
        ]
        if sides[0] != sides[1]:
            raise ValueError(f"{name}{path} is {sides[0]}, but should be {sides[1]}; {remedy}.")
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(f"{name} are packed for other layers than the network's; {remedy}.")


def _layer_name(path: str) -> str:
    for suffix in _SUFFIXES:
        path = path.removesuffix(suffix)
    return path


def quantize_model(
    function: Callable[..., Any],
    parameters: Any,
    batches: Iterable[Any],
    *,
    rules: Sequence[Rule] = (),
    observer: Observer | str = "mse",
    asymmetric: bool = False,
    per_channel: bool = True,
    weight_observer: Observer | str = "absmax",
    rounding: str = "nearest",
    bias_correction: bool = False,
    equalise: bool = False,
    progress: bool = True,
) -> QuantizedModel:
    """Make an int8 network of a float one.

    The function is traced, not changed: any JAX function of a pytree of parameters and of data, of
    Flax, Equinox, Haiku or none. Convolutions and products with weights are found, and what
    follows them is folded in: biases, batch norms, residuals, activations. int8 flows between
    them, through pooling, concatenation, reshaping and any function of single elements; all else
    stays as it is.

    Args:
        function: ``function(parameters, *data)``.
        parameters: a pytree of float arrays.
        batches: calibration data: an iterable of batches, each an array (or pytree) that is the
            only argument after the parameters, or a tuple of several. Gone through once.
        rules: exceptions for single layers; see `Rule`.
        observer: what decides on the ranges of values: ``"absmax"``, ``"minmax"``,
            ``"moving_average"``, ``"percentile"``, ``"percentile:99.9"``, ``"entropy"``,
            ``"mse"``, or an `Observer`. What goes into the network is spanned in full, as by
            ``"minmax"``, unless ``Rule("the input", observer=...)`` says otherwise.
        asymmetric: whether activations get zero points.
        per_channel: whether each output channel of a layer has its own weight scale.
        weight_observer: what decides on the ranges of weights, as ``observer``; of ``"mse"`` every
            hundredth of the largest weight is tried.
        rounding: of weights: ``"nearest"``, or ``"compensated"``: each makes up for what rounding
            those before it does to the layer's output on the calibration data (GPTQ,
            arXiv:2210.17323). Takes memory and time for layers with many weights to a sum; those
            with more than 8,192 are rounded to nearest.
        bias_correction: whether biases make up for what rounding the weights does to the mean of
            each output channel, on the calibration data. Helps where sums have few terms, as in
            depthwise convolutions.
        equalise: whether channels are scaled across layers so that their weights are of one size
            (arXiv:1906.04721), where none but relu, leaky relu or prelu lies between them. Helps
            where channels differ much, above all with one scale per tensor.
        progress: whether to show it on stderr.

    Returns:
        A `QuantizedModel`.

    Raises:
        ValueError: if there is no calibration data, if the function has no convolution or product
            with weights, if data or weights aren't finite (naming the layer), or if the shapes of
            batches don't fit.
        TypeError: on a wrong rule or observer.
    """
    book = RuleBook.make(
        rules,
        per_channel=per_channel,
        weight_observer=weight_observer,
        rounding=rounding,
        bias_correction=bias_correction,
        observer=observer,
        asymmetric=asymmetric,
    )
    shapes = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)), parameters
    )
    find = functools.partial(analyse, function, shapes, rules=book)
    networks, calibration = calibrate(
        find, parameters, batches, book, equalise=equalise, progress=progress
    )
    model = QuantizedModel(function, {}, calibration, networks, shapes, book)
    return dataclasses.replace(model, params=model.pack(parameters))
