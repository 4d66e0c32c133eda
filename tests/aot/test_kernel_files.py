"""Kernels that NVRTC compiled into a file serve where there is no NVRTC. The GPU is made up."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import cubin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qconv
from jax_qconv import _kernels, _native
from jax_qconv._collect import problems_of

HERE = pathlib.Path(__file__).parent
X = jax.ShapeDtypeStruct((1, 7, 7, 32), jnp.int8)
PACKED = jax_qconv.prepack(np.ones((3, 3, 1, 32), np.float32), groups=32, merge_groups=1).bind(
    x_scale=1.0, out_scale=1.0
)


def depthwise(x):
    return jax_qconv.qconv(jax_qconv.QTensor(x, 1.0), PACKED).values


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The kernels of a depthwise convolution, for an H100."""
    path = tmp_path_factory.mktemp("kernels") / "net.kernels"
    try:
        jax_qconv.export_kernels(path, depthwise, X)
    except jax_qconv.EngineUnavailableError as error:
        pytest.skip(str(error))
    return path


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A folder with a stub of the driver."""
    folder = tmp_path_factory.mktemp("driver")
    library = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1"]
    subprocess.run(["gcc", HERE / "libcuda_h100.c", *library], check=True)
    return folder


@pytest.fixture
def serve(driver, tmp_path):
    """Runs serve_without_nvrtc.py with files, in one cache; what it printed, or its error."""

    def run(*files):
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(driver),
            "JAX_QCONV_CACHE_DIR": str(tmp_path / "cache"),
        }
        (problem,) = map(str, problems_of(depthwise, X))
        done = subprocess.run(
            [sys.executable, HERE / "serve_without_nvrtc.py", problem, *files],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            return done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        if not found["nvrtc"]:
            pytest.skip("NVRTC is where the loader finds it anyway")
        return found

    return run


def test_a_server_without_nvrtc_builds_and_verifies_from_the_file(serve, file):
    found = serve(file)
    assert found["loaded"] and set(found["built"].values()) == {""}
    # The checker ran; nothing is exact on a GPU that does nothing.
    assert len(found["verified"]) == 6 and all("elements differ" in v for v in found["verified"])


def test_a_later_process_needs_no_file(serve, file):
    serve(file)
    assert set(serve()["built"].values()) == {""}


def test_without_the_file_the_error_names_the_kernel_and_both_remedies(serve):
    found = serve()
    assert not found["loaded"]
    for said in found["built"].values():
        assert "kernel depthwise.cu for sm_90 isn't among those that were loaded" in said
        assert "NVRTC" in said and "pip install" in said and "load_kernels" in said


def test_kernels_for_another_gpu_are_refused_by_what_the_driver_says(serve, tmp_path):
    other = tmp_path / "other.kernels"
    cubins = {_native.extension().hash(_native.extension().checker_source()): b"?"}
    other.write_bytes(_kernels._Set(80, "0.0.1", "13.0", cubins).to_bytes())
    said = serve(other)
    assert f"{other} has kernels for sm_80, but the GPUs here are sm_90" in said


def test_a_verdict_is_not_believed_of_another_compilation_of_a_kernel(serve, file, tmp_path):
    serve(file)
    verdicts = tmp_path / "cache" / "verdicts"
    before = set(verdicts.iterdir())
    assert len(before) == 6
    serve(file)
    assert set(verdicts.iterdir()) == before
    whole = _kernels._Set.from_bytes(file.read_bytes(), file)
    recompiled = tmp_path / "recompiled.kernels"
    cubins = {source: code + b"\0" for source, code in whole.cubins.items()}
    recompiled.write_bytes(_kernels._Set(90, "0.0.1", "13.1", cubins).to_bytes())
    serve(recompiled)
    assert len(set(verdicts.iterdir()) - before) == 6


def test_the_file_has_what_nvrtc_makes_of_the_sources(file):
    found = _kernels._Set.from_bytes(file.read_bytes(), file)
    extension = _native.extension()
    (problem,) = map(str, problems_of(depthwise, X))
    for plan in extension.own_plans(problem)[:6]:
        kernel = extension.own_kernel(problem, plan)
        code = found.cubins[extension.hash(kernel["source"])]
        assert cubin.usage(code, kernel["function"])["code"] > 0
    assert found.nvrtc == extension.nvrtc_version()


def test_compiling_again_makes_the_same_bytes(file, tmp_path):
    shutil.rmtree(_native.cache_dir() / "kernels")
    again = tmp_path / "again.kernels"
    jax_qconv.export_kernels(again, depthwise, X)
    assert again.read_bytes() == file.read_bytes()
