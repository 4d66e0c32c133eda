"""The example that trains networks on Fashion-MNIST: its parts, and what it promises."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_runs import DATA_VARIABLE, importer, run

ROW = re.compile(
    r"^(resnet|mobilenet), seed \d+ +([\d.]+)% +([\d.]+)% +(-?[\d.]+) +([\d.]+)%", re.M
)


load = importer("flax", "optax", "tqdm")


@pytest.fixture
def data(load):
    return load("_fashion_mnist_data")


@pytest.fixture
def quick(load):
    """Imports likewise; random bits that compile fast, and the mixed dtypes and ranks of Flax."""
    with (
        jax.default_prng_impl("rbg"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield load


def write_idx(path, values, *, kind=8, shape=None):
    shape = values.shape if shape is None else shape
    head = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def some_photos(n, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 28, 28, 1), np.uint8)
    return images, rng.integers(0, 10, n, np.uint8)


class TestData:
    def test_a_split_is_read_from_the_files_or_from_the_package(self, data, tmp_path):
        images, labels = some_photos(3)
        below = tmp_path / data.INSTALLED
        below.mkdir(parents=True)
        write_idx(below / "t10k-images-idx3-ubyte.gz", images[..., 0])
        write_idx(below / "t10k-labels-idx1-ubyte.gz", labels)
        for folder in (tmp_path, below):
            split = data.read_split(folder, "t10k")
            np.testing.assert_array_equal(split.images, images)
            np.testing.assert_array_equal(split.labels, labels)

    @pytest.mark.parametrize(
        "change", [{"kind": 13}, {"shape": (3, 28, 29)}, {"shape": (2, 28, 28)}, {"shape": ()}]
    )
    def test_a_file_that_says_something_else_is_refused(self, data, tmp_path, change):
        write_idx(tmp_path / "x.gz", some_photos(3)[0], **change)
        with pytest.raises(data.DataError, match=r"x\.gz isn't an IDX file of bytes"):
            data.read_idx(tmp_path / "x.gz")

    def test_a_damaged_file_is_named(self, data, tmp_path):
        write_idx(tmp_path / "x.gz", some_photos(3)[0])
        (tmp_path / "x.gz").write_bytes((tmp_path / "x.gz").read_bytes()[:-100])
        with pytest.raises(data.DataError, match=r"x\.gz cannot be read"):
            data.read_idx(tmp_path / "x.gz")

    def test_photos_and_labels_must_be_as_many(self, data, tmp_path):
        images, labels = some_photos(3)
        write_idx(tmp_path / "train-images-idx3-ubyte.gz", images[..., 0])
        write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels[:2])
        with pytest.raises(data.DataError, match=r"\(3, 28, 28\) for 2 labels"):
            data.read_split(tmp_path, "train")

    @pytest.mark.usefixtures("load")
    def test_missing_data_are_named_with_the_command_to_get_them(self, tmp_path):
        done = run("fashion_mnist.py", "--data", tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert f"{tmp_path / 'train-images-idx3-ubyte.gz'} is missing" in done.stderr
        assert "apt-get download dataset-fashion-mnist && dpkg-deb -x" in done.stderr


class TestTraining:
    def test_photos_are_mirrored_and_shifted_by_few_pixels(self, quick):
        augment = quick("_fashion_mnist_train").augment
        image = np.zeros((8, 8, 1), np.uint8)
        image[3, 2] = 7
        found = set()
        for changed in np.asarray(augment(jax.random.key(0), jnp.stack([image] * 500))):
            ((y, x),) = np.argwhere(changed[..., 0] == 7)
            found.add((int(y), int(x)))
        columns = {*range(0, 5), *range(3, 8)}  # around 2, and around its mirror image, 5
        assert found == {(y, x) for y in range(1, 6) for x in columns}

    @pytest.mark.parametrize("name", ["resnet", pytest.param("mobilenet", marks=pytest.mark.slow)])
    def test_a_network_is_trained_saved_quantised_and_judged(
        self, quick, tmp_path, monkeypatch, name
    ):
        example, training = quick("fashion_mnist"), quick("_fashion_mnist_train")
        nets, weights = quick("_fashion_mnist_nets"), quick("_fashion_mnist_weights")
        small = {
            "resnet": nets.ResNet(widths=(4,), blocks=1),
            "mobilenet": nets.MobileNet(stem=4, layers=((8, 2),)),
        }
        monkeypatch.setattr(example, "NETS", small)
        monkeypatch.setattr(training, "BATCH", 16)
        monkeypatch.setattr(example, "CALIBRATION", 32)
        split = example.Split(*some_photos(32))
        example.train_and_save(name, split, split, seed=3, epochs=1, out=tmp_path)
        path = weights.weights_path(tmp_path, name, 3)
        found = example.measure(path, split, split, observer="absmax")
        facts = json.loads(path.with_suffix(".json").read_text())
        expected = {"net": name, "seed": 3, "epochs": 1, "of_epochs": 1, "device": "cpu"}
        assert facts.items() >= expected.items()
        assert facts.keys() >= {"accuracy", "date", "commit", "jax"}
        assert found["photos"] == 32
        assert found["float_accuracy"] == pytest.approx(facts["accuracy"], abs=0.01)
        assert found["loss"] == found["float_accuracy"] - found["accuracy"]
        assert found["logit_sqnr_db"] > 20

    def test_weights_are_the_same_after_saving(self, load, tmp_path):
        weights = load("_fashion_mnist_weights")
        tree = {"params": {"a": {"kernel": np.float32([0.1, 1e-6])}, "b": np.ones(3)}}
        weights.save_weights(tmp_path / "x.npz", tree, {"net": "none"})
        found, facts = weights.load_weights(tmp_path / "x.npz")
        assert facts["net"] == "none"
        jax.tree.map(np.testing.assert_array_equal, found, weights.as_saved(tree))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}


class TestTrained:
    """The weights that come with the example."""

    def test_fit_their_networks(self, quick):
        weights, nets = quick("_fashion_mnist_weights"), quick("_fashion_mnist_nets").NETS
        paths = sorted(weights.FOLDER.glob("fashion_mnist_*.npz"))
        seen = set()
        for path in paths:
            assert path.stat().st_size < 1e6
            variables, facts = weights.load_weights(path)
            assert path == weights.weights_path(weights.FOLDER, facts["net"], facts["seed"])
            assert facts["epochs"] == facts["of_epochs"]
            x = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
            shapes = jax.eval_shape(nets[facts["net"]].init, jax.random.key(0), x)
            assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
            seen.add(facts["net"])
        assert seen == nets.keys()

    @pytest.mark.slow
    @pytest.mark.usefixtures("load")
    def test_int8_is_as_accurate_as_float(self):
        folder = os.environ.get(DATA_VARIABLE)
        if folder is None or not (Path(folder) / "usr/share/datasets/fashion-mnist").is_dir():
            pytest.skip(
                f"{DATA_VARIABLE} names no folder with Fashion-MNIST; apt-get download "
                f"dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb ${DATA_VARIABLE}"
            )
        done = run("fashion_mnist.py", "--data", folder, "--photos", 1000, timeout=900)
        assert done.returncode == 0, done.stderr
        assert re.match(r"backend \w+, engine (cudnn|reference)\n1,000 test photos ", done.stdout)
        rows = ROW.findall(done.stdout)
        assert {name for name, *_ in rows} == {"resnet", "mobilenet"}
        for _, in_float, in_int8, loss, agreement in rows:
            assert float(in_float) > 88
            assert float(loss) == pytest.approx(float(in_float) - float(in_int8), abs=0.02)
            # One photo is 0.1 points here.
            assert float(loss) <= 0.5
            assert float(agreement) >= 98
