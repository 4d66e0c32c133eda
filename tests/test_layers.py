"""The list of real layers is that of the networks."""

import collections

import layers


def resnet50():
    """Every convolution of ResNet-50 v1.5 as (c, h, k, r, stride), from its recipe."""
    yield 3, 224, 64, 7, 2
    channels, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if not block:
                yield channels, size, 4 * width, 1, stride
            yield channels, size, width, 1, 1
            yield width, size, width, 3, stride
            channels, size = 4 * width, size // stride
            yield width, size, channels, 1, 1


def test_resnet50_is_complete():
    listed = collections.Counter()
    for layer in layers.RESNET50:
        assert (layer.h, layer.r) == (layer.w, layer.s)
        listed[layer.c, layer.h, layer.k, layer.r, layer.stride] = layer.count
    assert listed == collections.Counter(resnet50())
    assert (len(layers.RESNET50), listed.total()) == (23, 53)


def test_names_are_distinct():
    names = [layer.name for layer in layers.RESNET50]
    assert len(set(names)) == len(names)
    assert {"256x14x14_3x3", "64x56x56_1x1_to256", "3x224x224_7x7_to64_s2"} <= set(names)
