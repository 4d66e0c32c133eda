"""The layers of the networks are those of their papers, and their problems those of real calls."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import QTensor, prepack, qconv
from jax_qconv._collect import problems_of
from jax_qconv._groups import merge_by_rule
from jax_qconv._networks import NETWORKS, RESNET50, Layer
from jax_qconv._spec import padded_channels
from jax_qconv._tune import layer_problem

CONVOLUTIONS = {
    "resnet18": 20,
    "resnet50": 53,
    "resnet50_plain": 53,
    "resnext50": 53,
    "vgg16": 13,
    "mobilenet_v2": 52 - 17,  # less the depthwise ones
    "efficientnet_lite0": 49 - 16,
    "unet": 23 - 4,  # less the transposed ones
    "yolov8s": 25,  # of the backbone, up to the pooling
}
PRODUCTS = {
    # Published, in millions, and the part of dense layers and depthwise convolutions.
    "resnet18": (1814.1, 0.5),
    "resnet50": (4089.2, 2.0),
    "resnext50": (4230.0, 2.0),
    "vgg16": (15470.3, 123.6),
    "mobilenet_v2": (300.8, 1.3 + 20.7),
}


def products(layer):
    p, q = -(-layer.h // layer.stride), -(-layer.w // layer.stride)
    return layer.count * p * q * layer.k * layer.r * layer.s * layer.c // layer.groups


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_all_its_convolutions_each_distinct_one_once(name):
    network = NETWORKS[name]
    assert sum(layer.count for layer in network) == CONVOLUTIONS[name]
    once = collections.Counter((layer.name, layer.relu, layer.residual) for layer in network)
    assert once.total() == len(once)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_network_has_as_many_products_as_published(name):
    published, others = PRODUCTS[name]
    found = sum(map(products, NETWORKS[name])) / 1e6
    assert found == pytest.approx(published - others, rel=1e-3)


def test_residuals_are_where_a_block_ends_as_it_began():
    residual = {
        name: sum(layer.count for layer in network if layer.residual)
        for name, network in NETWORKS.items()
    }
    # ResNet-50 has 16 blocks; RESNET50 counts the shortcut of the first among their last layers.
    assert residual == {
        "resnet18": 8,
        "resnet50": 17,
        "resnet50_plain": 0,
        "resnext50": 16,
        "vgg16": 0,
        "mobilenet_v2": 10,
        "efficientnet_lite0": 9,
        "unet": 0,
        "yolov8s": 0,
    }


def problem_of(layer, batch):
    problem = layer_problem(layer, batch)
    return problem


@pytest.mark.parametrize("name", NETWORKS)
def test_the_problems_of_a_network_are_its_layers_as_stored(name):
    for layer in NETWORKS[name]:
        problem = problem_of(layer, 8)
        assert problem.x_shape[0] == 8
        assert problem.out_dtype == "int8"
        assert problem.activation == ("relu" if layer.relu else "none")
        assert problem.residual == layer.residual
        if layer.c > 4:
            p, q = -(-layer.h // layer.stride), -(-layer.w // layer.stride)
            c, k = padded_channels(layer.c), padded_channels(layer.k)
            assert problem.x_shape == (8, layer.h, layer.w, c)
            merge = merge_by_rule(layer.c, layer.k, layer.groups)
            assert problem.groups == layer.groups // merge
            assert problem.w_shape == (k, layer.r, layer.s, c // problem.groups)
            assert problem.out_shape == (8, p, q, k)


def test_the_stem_is_a_convolution_of_pixels_unless_its_kernel_is_as_large_as_its_strides():
    assert problem_of(RESNET50[0], 8).w_shape == (64, 7, 7, 4)
    patches = Layer(3, 224, 224, 64, 4, 4, stride=4)
    assert problem_of(patches, 8).w_shape == (64, 1, 1, 4 * 4 * 4)


@pytest.mark.parametrize(
    "layer",
    [
        Layer(3, 14, 14, 8, 7, 7, stride=2),
        Layer(16, 9, 9, 40, 3, 3, stride=2, relu=False),
        Layer(20, 7, 7, 24, 1, 1, residual=True),
    ],
    ids=lambda layer: layer.name,
)
def test_the_problem_of_a_layer_is_that_of_a_call_by_a_user(layer):
    weight = np.ones((layer.r, layer.s, layer.c, layer.k), np.float32)
    packed = prepack(weight, strides=layer.stride, padding=layer.padding).bind(
        x_scale=0.1,
        out_scale=0.1,
        residual_scale=0.1 if layer.residual else None,
        activation="relu" if layer.relu else None,
    )

    def call(x):
        residual = None
        if layer.residual:
            residual = QTensor(jnp.zeros((2, layer.h, layer.w, layer.k), jnp.int8), 0.1)
        return qconv(QTensor(x, 0.1), packed, residual=residual).values

    x = jax.ShapeDtypeStruct((2, layer.h, layer.w, layer.c), jnp.int8)
    assert list(problems_of(call, x)) == [problem_of(layer, 2)]
