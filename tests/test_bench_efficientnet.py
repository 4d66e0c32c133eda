"""The whole of EfficientNet-Lite0 in each system: the same network, timed and written down."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import efficientnet, efficientnet_jax, nets, resnet50_jax
from bench.efficientnet_net import CONVS, forward


@pytest.fixture(scope="module")
def image():
    """Small, which changes nothing but the sizes."""
    return jnp.asarray(np.random.default_rng(2).integers(-128, 128, (1, 64, 64, 3), np.int8))


@pytest.fixture(scope="module")
def int8(image):
    return outputs(efficientnet_jax.int8_net(), image)


def outputs(net, x):
    run, params = net
    return np.asarray(jax.jit(run)(params, x).astype(jnp.float32))


def test_the_network_has_its_convolutions():
    assert len(CONVS) == 49 and len({conv.name for conv in CONVS}) == 49
    assert [conv.k for conv in CONVS if conv.name.endswith("0.project")] == [
        *(16, 24, 40, 80, 112, 192, 320)
    ]
    assert sum(conv.residual for conv in CONVS) == 9
    # 4.65 million parameters with batch norms and the classifier's bias, as published.
    weights = sum(conv.taps * conv.k for conv in CONVS)
    assert weights + 1280 * 1000 == pytest.approx(4.65e6, rel=0.01)


def test_residuals_are_the_inputs_of_their_blocks():
    seen = []

    def conv(conv, x, residual):
        if residual is not None:
            seen.append((conv.name, residual))
        return conv.name

    assert forward("image", conv, lambda x: x) == "last"
    assert seen[0] == ("1.1.project", "1.0.project") and seen[-1] == ("5.3.project", "5.2.project")
    assert len(seen) == 9


@pytest.mark.slow
@pytest.mark.parametrize("shifts", [False, True])
def test_bf16_is_the_same_network(shifts, image, int8):
    x = image.astype(jnp.bfloat16) * jnp.bfloat16(efficientnet_jax.OUT_SCALE)
    got = outputs(efficientnet_jax.bf16_net(shifts=shifts), x)
    assert got.shape == int8.shape == (1, 1000)
    assert np.corrcoef(got.ravel(), int8.ravel())[0, 1] > 0.9


@pytest.mark.slow
def test_merged_depthwise_channels_give_the_same_bytes(image, int8):
    net = efficientnet_jax.int8_net(merged=64)
    merges = {name: packed.merge for name, packed in net[1][0].items()}
    assert all((merges[conv.name] > 1) == (conv.groups > 1) for conv in CONVS)
    assert max(merges.values()) == 64
    assert (outputs(net, image) == int8).all()


def test_exactness_is_that_of_all_outputs():
    def net(wrong):
        def run(params, x, *, implementation):
            return (x * params).at[0, 0].add(wrong if implementation is None else 0)

        return run, 2

    x = jnp.arange(20).reshape(2, 10)
    assert nets.exact(net(0), x)
    assert not nets.exact(net(1), x)
    assert not nets.exact(net(0), x * 0)  # which would say nothing


def test_the_script_writes_its_file(monkeypatch, tmp_path):
    class Fake:
        def execute(self, times):
            return 1000.0

    monkeypatch.setattr(efficientnet, "NETS", dict.fromkeys(efficientnet.NETS, lambda n: Fake()))
    monkeypatch.setattr(efficientnet, "exact", lambda batch: True)
    monkeypatch.setattr("sys.argv", ["efficientnet.py", "--batch", "4", "--out", str(tmp_path)])
    assert efficientnet.main() == 0
    results = json.loads((tmp_path / "efficientnet_lite0.json").read_text())
    assert [row["system"] for row in results["rows"]] == list(efficientnet.NETS)
    assert results["rows"][0]["images_per_s"] == 4000 and results["exact"]
    assert "int8_merged" in results["method"]


def test_the_images_are_of_the_size_that_the_table_is_for():
    assert resnet50_jax.images(1).shape == (1, 224, 224, 3)
