"""Real cuDNN plans for an H100 without a GPU: which engine an epilogue gets, and that it builds."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
from importlib import metadata

import pytest

import jax_qconv as q
from jax_qconv._activation import ACTIVATIONS, SCALE_FREE, as_activation
from jax_qconv._problem import Problem

HERE = pathlib.Path(__file__).parent
HOPPER, AMPERE = "cudnn:4:", "cudnn:7"  # kernels with wgmma and TMA; those of any channel count


def problem(channels=64, *, groups=1, rank=2, **fields) -> str:
    fields = {"out_dtype": "int8", "activation": "none"} | fields
    return str(
        Problem.make(
            x_shape=(8, *[56, 56, 8][:rank], channels),
            w_shape=(64, *[3] * rank, channels // groups),
            strides=(1,) * rank,
            padding="SAME",
            dilation=(1,) * rank,
            groups=groups,
            **fields,
        )
    )


def fused(activation: str, out_dtype: str, **fields: bool) -> str:
    act = as_activation(activation)
    requantize = out_dtype == "int8" and act.kind not in SCALE_FREE
    return problem(
        out_dtype=out_dtype, activation=act.kind, slope=act.slope, requantize=requantize, **fields
    )


FLOATS = ["int8", "float32", "bfloat16", "float16"]
HOPPER_PROBLEMS = [
    *[fused(a, "int8") for a in ACTIVATIONS],
    *[fused(a, o) for a, o in zip(ACTIVATIONS, itertools.cycle(FLOATS[1:]))],
    *[fused(a, "int8", residual=True) for a in ACTIVATIONS],
    *[fused("relu6", o, residual=True) for o in FLOATS[1:]],
    problem(out_dtype="int32"),
    problem(offset="channel"),
    problem(offset="channel", out_dtype="int32"),
    problem(offset="channel", residual=True, residual_zero_point=True, activation="clip"),
    problem(residual=True, activation_first=True, activation="relu"),
    *[fused("hard_swish", o, residual=True, activation_first=True) for o in FLOATS],
    problem(residual=True, residual_zero_point=True, activation_first=True, requantize=True),
    problem(rank=3, activation="relu", residual=True),
    problem(rank=3, offset="channel"),
]
AMPERE_PROBLEMS = [
    problem(channels=4),
    problem(channels=8, activation="relu", residual=True),
    problem(channels=64, groups=2, activation="relu", residual=True),
    problem(channels=128, groups=8, offset="channel"),
]


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> dict[str, list[str]]:
    folders = [
        str(folder)
        for package in ("nvidia-cudnn-cu13", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime")
        for folder in _library_folders(package)
    ]
    stub = tmp_path_factory.mktemp("stub")
    library = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", stub / "libcuda.so.1"]
    subprocess.run(["gcc", HERE / "libcuda_stub.c", *library], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join([str(stub), *folders])}
    script = [sys.executable, HERE / "plan_without_gpu.py", HERE / "h100.json"]
    result = subprocess.run(
        [*script, *HOPPER_PROBLEMS, *AMPERE_PROBLEMS],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def _library_folders(package: str) -> set[pathlib.Path]:
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} isn't installed; pip install 'jax_qconv[aot]'")
    return {pathlib.Path(str(f.locate())).parent for f in files if ".so" in f.name}


@pytest.mark.parametrize("text", HOPPER_PROBLEMS)
def test_every_epilogue_gets_a_hopper_kernel_first(plans, text):
    assert plans[text][0].startswith(HOPPER)


@pytest.mark.parametrize("text", AMPERE_PROBLEMS)
def test_few_channels_get_a_kernel_of_the_older_engine(plans, text):
    assert plans[text][0].startswith(AMPERE)


def test_plan_names_are_spelled_as_they_are_parsed(plans):
    parse = q._native.extension().parse_plan
    names = {name for offered in plans.values() for name in offered}
    assert names and all(parse(name) == name for name in names)
