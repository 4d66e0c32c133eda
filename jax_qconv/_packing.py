"""Float parameters of a network to packed ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._calibrate import Calibration
from jax_qconv._conv_node import ConvNode
from jax_qconv._equalise import by_inputs
from jax_qconv._network import Network
from jax_qconv._packed_conv import PackedConv
from jax_qconv._rules import RuleBook
from jax_qconv._storage import pad_to
from jax_qconv._values import Quantisation, Values
from jax_qconv._weights import by_sums, rounded, weight_scale


def packed_layer(
    node: ConvNode,
    network: Network,
    values: Values,
    calibration: Calibration,
    rules: RuleBook,
) -> tuple[PackedConv, jax.Array]:
    """A layer's weights in int8, packed and bound to its scales; and whether they are finite.

    Args:
        node: the layer.
        network: that it is of.
        values: with the parameters.
        calibration: of the network.
        rules: that say how.
    """

    def quantisation(value: int) -> Quantisation:
        return calibration.quantisation[network.group[value]]

    weight, bias = node.weights(values)
    finite = jnp.isfinite(weight).all()
    finite = finite if bias is None else finite & jnp.isfinite(bias).all()
    moments = calibration.moments.get(node.name)
    if node.x in calibration.factors:
        factors = calibration.factors[node.x].reshape(-1)
        weight = weight * jnp.broadcast_to(by_inputs(factors, weight), weight.shape)
        moments = None if moments is None else moments.divided(factors)
    if node.out in calibration.factors:
        factors = calibration.factors[node.out].reshape(-1)
        weight = weight / jnp.broadcast_to(factors, weight.shape)
        bias = None if bias is None else bias / factors
    scale = weight_scale(
        weight, rules.weight_observer(node.info), per_channel=rules.per_channel(node.info)
    )
    x_scale, _ = quantisation(node.x)
    second = None
    if moments is not None and rules.rounding(node.info) == "compensated":
        second = moments.second
    integers = rounded(weight, scale, second=second, x_scale=x_scale)
    if moments is not None and rules.corrects_bias(node.info):
        error = integers.astype(jnp.float32) * jnp.broadcast_to(scale, weight.shape) - weight
        by_group = by_sums(error, len(moments.mean))
        shift = jnp.einsum("gtk,gt->gk", by_group, moments.mean, precision="highest").reshape(-1)
        bias = -shift if bias is None else bias - shift
    out: dict[str, Any]
    if node.out in network.int8:
        scale_of_out, zero_point = quantisation(node.out)
        out = {"out_scale": scale_of_out, "out_zero_point": zero_point}
    else:
        wanted = rules.out_dtype(node.info)
        out = {"out_dtype": network.graph.avals[node.out].dtype if wanted is None else wanted}
    stored = pad_to(node, network.fine)
    return node.pack(values, integers, scale, bias, quantisation, stored, **out), finite
