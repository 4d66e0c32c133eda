"""Networks of plain Flax that `quantize_model` makes int8: what they are, timed, written down."""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

from bench import flax_nets, models
from bench.flax_nets import VGG, MobileNet, ResNet, UNet
from float_nets import quantized, sqnr

from jax_qconv._graph import trace
from jax_qconv._network import Network

CONVS = {"resnet50": 53, "efficientnet_lite0": 49, "mobilenet_v2": 52, "vgg16": 13, "unet": 23}
MILLIONS = {
    "resnet50": 25.56,
    "efficientnet_lite0": 4.65,
    "mobilenet_v2": 3.50,
    "vgg16": 138.36,
    "unet": 31.04,
}
"""Parameters, as published."""

SHALLOW = {
    "resnet50": ResNet(stages=((8, 1), (16, 2))),
    "efficientnet_lite0": MobileNet(blocks=((1, 16, 1, 1, 3), (3, 24, 2, 2, 5))),
    "mobilenet_v2": MobileNet(blocks=((1, 16, 1, 1, 3), (3, 24, 2, 2, 3))),
    "vgg16": VGG(stages=((16, 1), (32, 2)), hidden=64),
    "unet": UNet(widths=(16, 32, 64)),
}
SIZE = 32


@pytest.mark.parametrize("name", flax_nets.NETS)
def test_all_of_a_network_runs_in_int8(name):
    net, x = flax_nets.NETS[name], flax_nets.images(1, flax_nets.SIZES[name])
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.01)
    never = lambda layer: False  # noqa: E731
    network = Network.make(trace(net.apply, shapes, x), {}, never, never)
    assert sum(not layer.placement.linear for layer in network.layers) == CONVS[name]
    assert all(map(network.runs_in_int8, network.nodes))
    # But for the last, layers write int8.
    assert [n for n in network.nodes if n.out not in network.int8] == [network.nodes[-1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_the_int8_network_is_the_float_one(name):
    net, x = SHALLOW[name], flax_nets.images(2, SIZE)
    variables = flax_nets.random_variables(net, SIZE)
    wanted = jax.jit(net.apply)(variables, x)
    assert 0.3 < wanted.std() < 10
    model = quantized(net.apply, variables, x)
    assert sqnr(wanted, jax.jit(model)(model.params, x)) > 20


@pytest.mark.parametrize("name", SHALLOW)
def test_folded_batch_norms_leave_the_network_the_same(name):
    net, x = SHALLOW[name], flax_nets.images(2, SIZE)
    variables = flax_nets.random_variables(net, SIZE)
    other, params = flax_nets.folded(net, variables)
    assert "batch_stats" not in params
    wanted, got = jax.jit(net.apply)(variables, x), jax.jit(other.apply)(params, x)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.fixture
def tiny(monkeypatch):
    """The smallest network in the place of MobileNet-v2."""
    monkeypatch.setitem(models.NETS, "mobilenet_v2", SHALLOW["mobilenet_v2"])
    monkeypatch.setitem(models.SIZES, "mobilenet_v2", SIZE)
    monkeypatch.setitem(models.CALIBRATION, "mobilenet_v2", (2, 2))
    monkeypatch.setattr(models, "QUANTISED", (2, 2))
    quick = functools.partial(models.quantize_model, observer="absmax")
    monkeypatch.setattr(models, "quantize_model", quick)
    yield "mobilenet_v2"
    models.model.cache_clear()
    models.variables.cache_clear()


@pytest.mark.slow
def test_the_systems_of_a_network(tiny):
    assert models.exact(tiny, 2)
    assert models.quantise_seconds(tiny) > 0
    found = {name: make(2) for name, make in models.systems(tiny).items()}
    outs = {name: net.compiled(*net.arguments) for name, net in found.items()}
    assert outs["int8"].dtype == jnp.float32 and outs["bf16"].dtype == jnp.bfloat16
    assert found["bf16"].arguments[1].dtype == jnp.bfloat16
    assert (outs["int8"] == outs["int8_constants"]).all()
    for name in ("bf16", "bf16_graph", "bf16_graph_constants"):
        assert sqnr(outs["int8"], outs[name].astype(jnp.float32)) > 20


def test_the_network_made_by_hand_takes_turns_with_that_of_resnet50():
    more = {*models.systems("resnet50")} - {*models.systems("unet")}
    assert more == {"by_hand", "by_hand_constants", "bf16_blocks", "bf16_blocks_graph"}


class Fake:
    def execute(self, times):
        return 1000.0


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the script with systems that take no time."""
    monkeypatch.setattr(models, "systems", lambda name: {"int8": lambda n: Fake()})
    monkeypatch.setattr(models, "exact", lambda name, batch: name != "unet")
    monkeypatch.setattr(models, "quantise_seconds", lambda name: 2.5)
    monkeypatch.setenv("JAX_QCONV_COMMIT", "0123456789abcdef")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["models.py", "--out", str(tmp_path), *arguments])
        return models.main(), json.loads((tmp_path / "models.json").read_text())

    return run


def test_the_script_goes_on_where_it_was_cut_off(run):
    code, first = run("--models", "resnet50", "vgg16", "--batch", "4")
    assert code == 0 and list(first["models"]) == ["resnet50", "vgg16"]
    assert first["models"]["resnet50"]["quantise_seconds"] == 2.5
    assert "quantise_seconds" not in first["models"]["vgg16"]
    assert first["models"]["vgg16"]["rows"][0]["images_per_s"] == 4000
    assert {"clocks_before", "clocks_after", "method", "commit"} <= set(first)
    code, more = run("--batch", "4")
    assert {*more["models"]} == {*models.NETS}
    assert more["models"]["vgg16"] == first["models"]["vgg16"]
    assert code == "differ from the reference: unet"
