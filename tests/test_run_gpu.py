"""run_gpu.sh: its stages, one by one or all, their order and their time limits."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parent / "bench" / "run_gpu.sh"
STAGES = ["tests", "rankings", "layers", "resnet50", "startup", "rivals", "suites"]
STAGES += ["kinds", "efficientnet", "models", "sanitizer", "summary"]


@pytest.fixture
def run(tmp_path):
    """Runs the script with commands in the place of Python and nvidia-smi."""

    def fake(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def run(*arguments, python='echo "$@"', **environment):
        fake("nvidia-smi", "echo NVIDIA H100 80GB HBM3")
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment
        command = ["bash", str(SCRIPT), *arguments]
        return subprocess.run(
            command, env=env | {"PYTHON": fake("python", python)}, capture_output=True, text=True
        )

    return run


def finished(result):
    """The stages, in order."""
    return re.findall(r"^=== (\w+): \d+ s$", result.stdout, re.MULTILINE)


def test_all_stages_run_in_order_without_a_name(run, tmp_path):
    result = run(str(tmp_path / "out"))
    assert (result.returncode, finished(result)) == (0, STAGES)
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_alone(stage, run, tmp_path):
    result = run(stage, str(tmp_path))
    assert (result.returncode, finished(result)) == (0, [stage])
    assert str(tmp_path) in result.stdout or stage == "tests"


@pytest.mark.parametrize("stage", STAGES[2:4])
def test_what_the_targets_need_is_measured_before_the_rest(stage, run, tmp_path):
    line = run(stage, str(tmp_path)).stdout
    assert "--batch 128 1" in line and "seed" in line and "bf16" in line
    assert "xla_int8" not in line and "torch" not in line


def test_the_scripts_take_the_arguments(run, tmp_path):
    from bench import layers, resnet50
    from layers import NETWORKS

    text = run(str(tmp_path)).stdout
    names = set(re.findall(r"(?:--systems|--suite) ([\w ]+)", text))
    words = {word for name in names for word in name.split()}
    assert words == {*layers.SYSTEMS, *resnet50.CORE, *NETWORKS}
    assert all((SCRIPT.parent / name).exists() for name in re.findall(r"bench/(\w+\.py)", text))


def test_a_stage_that_fails_is_told_and_the_others_run(run, tmp_path):
    result = run(str(tmp_path), python="[[ $1 != *layers.py ]] || exit 3")
    assert result.returncode == 1
    assert "=== layers: 0 s, failed with 3" in result.stdout
    assert finished(result) == [s for s in STAGES if s not in ("layers", "rivals", "suites")]


def test_a_stage_is_cut_off_as_by_ctrl_c(run, tmp_path):
    waits = f"trap 'touch {tmp_path}/told; exit 1' INT; for _ in {{1..100}}; do sleep 0.1; done"
    result = run("rivals", str(tmp_path), python=waits, LIMIT="1")
    assert (tmp_path / "told").exists()
    assert "no time is left for" in result.stderr  # nor for the second half of the stage
    assert "failed with 124" in result.stdout and result.returncode == 1


def test_an_unknown_stage_is_refused(run):
    result = run("layer")
    assert result.returncode == 2 and "neither a folder nor one of: tests" in result.stderr
