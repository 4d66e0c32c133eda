#!/usr/bin/env bash
# Make the GPU evidence again: the GPU tests, the layers' times, their summary.
#
#     bash tests/bench/run_gpu.sh [OUT_DIR]
#
# OUT_DIR is tests/bench/results/<gpu> if left out; PYTHON is the interpreter, python by default.
# Fails if a test fails or a layer isn't exact, but measures everything first.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0)  # such as NVIDIA H200
gpu=${gpu#NVIDIA }
gpu=${gpu%% *}
out=$(realpath --canonicalize-missing "${1:-$root/tests/bench/results/${gpu,,}}")
mkdir -p "$out"
cd "$root"

status=0
JAX_QCONV_REQUIRE_GPU=1 JAX_QCONV_GPU_REPORT=$out/gpu_tests.json \
    "$python" -m pytest -q tests/gpu || status=$?
"$python" tests/bench/layers.py --batch 128 1 --xla-int8 128 --out "$out" || status=$?
"$python" tests/bench/summary.py "$out" || status=$?
exit "$status"
