"""What the examples that make pictures are made of: readers of weights, networks, figures."""

from __future__ import annotations

import io

import jax
import numpy as np
import pytest
from example_runs import importer

load = importer("PIL", "h5py")


PARAM = """7767517
4 4
Input    in     0 1 data
Convolution first 1 1 data a 0=3 1=3 4=1 5=1 6=27
PReLU    second 1 1 a b 0=3
Interp   third  1 1 b out 0=1
"""


class TestNcnn:
    @pytest.fixture
    def arrays(self):
        rng = np.random.default_rng(0)
        weight = rng.normal(size=(3, 1, 3, 3)).astype(np.float16)
        return weight, np.float32([1, 2, 3]), np.float32([0.25, 0.5, -1])

    @pytest.fixture
    def data(self, arrays):
        weight, bias, slope = arrays
        # 27 numbers of two bytes are filled up to 56.
        head = (0x01306B47).to_bytes(4, "little")
        return head + weight.tobytes() + b"??" + bias.tobytes() + slope.tobytes()

    def test_layers_come_with_their_arrays(self, load, arrays, data):
        _, conv, prelu, interp = load("_ncnn").read_layers(PARAM, data)
        weight, bias, slope = arrays
        assert (conv.kind, conv.name) == ("Convolution", "first")
        assert conv.arrays["kernel"].dtype == np.float32
        np.testing.assert_array_equal(conv.arrays["kernel"], weight.transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(conv.arrays["bias"], bias)
        np.testing.assert_array_equal(prelu.arrays["slope"], slope)
        assert interp.arrays == {}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p, d: ("7767518" + p[7:], d), "begins with 7767517"),
            (lambda p, d: (p, d[:-4]), "4 bytes too early"),
            (lambda p, d: (p, d + b"1234"), "4 bytes are left"),
            (lambda p, d: (p, b"1234" + d[4:]), "aren't float16"),
            (lambda p, d: (p.replace(" 5=1", ""), d), "without a bias"),
        ],
    )
    def test_other_files_are_refused(self, load, data, change, message):
        with pytest.raises(ValueError, match=message):
            load("_ncnn").read_layers(*change(PARAM, data))


class TestHed:
    @pytest.fixture
    def file(self, load):
        """A file as Keras writes them, of a narrow network."""
        h5py, rng = pytest.importorskip("h5py"), np.random.default_rng(0)
        file = io.BytesIO()
        with h5py.File(file, "w") as layers:

            def put(path, *shape):
                group = layers.create_group(f"{path}/vars")
                group["0"] = rng.normal(size=shape).astype("f") / np.sqrt(np.prod(shape[:3]))
                group["1"] = np.full(shape[-1], 0.1, np.float32)

            c = 3
            for block, count in enumerate((2, 2, 3, 3, 3), 1):
                if block > 1:
                    layers.create_group(f"block{block}/layers/max_pooling2d/vars")
                for i in range(count):
                    name = f"conv2d_{i}" if i else "conv2d"
                    put(f"block{block}/layers/{name}", 3, 3, c, 4 * block)
                    c = 4 * block
                put(f"dsn{block}", 1, 1, c, 1)
            put("fuse", 1, 1, 5, 1)
        return file

    def test_weights_are_read_in_the_order_of_the_layers(self, load, file):
        weights = load("hed").read_keras(file)
        assert [len(block) for block in weights["blocks"]] == [2, 2, 3, 3, 3]
        shapes = [layer["kernel"].shape[2:] for block in weights["blocks"] for layer in block]
        assert shapes[:3] == [(3, 4), (4, 4), (4, 8)] and shapes[-1] == (20, 20)
        assert weights["fuse"]["kernel"].shape == (1, 1, 5, 1)

    def test_an_edge_map_is_as_large_as_its_photo(self, load, file):
        hed = load("hed")
        image = np.random.default_rng(1).normal(size=(1, 18, 33, 3)).astype("f")
        edges = np.asarray(jax.jit(hed.hed)(hed.read_keras(file), image))
        assert edges.shape == (1, 18, 33, 1)
        assert 0 < edges.min() < edges.max() < 1


class TestRealEsrgan:
    def test_channels_become_blocks_of_pixels(self, load):
        example, c = load("realesrgan"), 2
        x = np.arange(2 * 3 * c * 16, dtype=np.float32).reshape(1, 2, 3, c * 16)
        y = np.asarray(example.pixel_shuffle(x))
        assert y.shape == (1, 8, 12, c)
        for row, column, channel in ((0, 0, 0), (5, 6, 1), (7, 11, 0)):
            at = channel * 16 + (row % 4) * 4 + column % 4
            assert y[0, row, column, channel] == x[0, row // 4, column // 4, at]

    def test_details_are_added_to_enlarged_pixels(self, load):
        example = load("realesrgan")
        zeros = {"kernel": np.zeros((3, 3, 3, 3), "f"), "bias": np.zeros(3, "f")}
        weights = {"body": [zeros | {"slope": np.ones(3, "f")}]}
        weights["head"] = {"kernel": np.zeros((3, 3, 3, 48), "f"), "bias": np.zeros(48, "f")}
        image = np.random.default_rng(0).random((1, 2, 3, 3), np.float32)
        y = np.asarray(example.upscale(weights, image))
        np.testing.assert_array_equal(y, image.repeat(4, 1).repeat(4, 2))

    def test_each_channel_has_a_slope(self, load):
        x, slope = np.float32([[[[-2, -2, 2]]]]), np.float32([0.5, -1, 3])
        np.testing.assert_array_equal(load("realesrgan").prelu(x, slope), [[[[-1, 2, 2]]]])


class TestPictures:
    def test_the_signal_to_noise_ratio_is_that_of_what_can_be_seen(self, load):
        exact = np.zeros((2, 4, 4, 3), np.float32)
        exact[1] = 1.5
        approximate = exact + np.float32(0.1)
        approximate[1, 0, 0, 0] = 0.5
        figures = load("_pictures").figures(exact, approximate)
        # Of the second picture one number in 48 is wrong, by a half; the others are too bright.
        second = 10 * np.log10(48 / 0.25)
        assert figures["least_psnr_db"] == pytest.approx(20, rel=1e-5)
        assert figures["mean_psnr_db"] == pytest.approx((20 + second) / 2, rel=1e-5)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_both_pictures_and_their_difference_stand_side_by_side(self, load, channels):
        exact = np.full((2, 4, 5, channels), 0.5, np.float32)
        image = load("_pictures").side_by_side(exact, exact + np.float32(0.02))
        assert image.size == (15, 8)
        pixels = np.asarray(image).reshape(8, 15, channels)[0, ::5, 0]
        np.testing.assert_array_equal(pixels, [128, 133, 51])
