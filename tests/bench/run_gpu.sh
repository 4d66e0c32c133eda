#!/usr/bin/env bash
# Make the GPU evidence again, in stages that can be run one by one.
#
#     bash tests/bench/run_gpu.sh [STAGE] [OUT_DIR]
#
#     tests     the GPU tests, to gpu_tests.json
#     rankings  tunes the problems of the package's table, to rankings.json and plans.json; goes on
#               where the user's store of plans ends; LIKE, the rankings.json of another GPU,
#               makes it try the plans only that were the fastest there
#     layers    ResNet-50's layers, with and without residuals, at batch 128 and 1: int8, JAX bf16 and
#               the seed, to layers.json
#     resnet50  the whole of ResNet-50: int8, JAX bf16 and the seed, to resnet50.json
#     startup   the time to the first result, to startup.json
#     rivals    what is left of the systems, of the whole network and of its layers at batch 128
#     suites    the layers of all networks at batch 128, 1, 32 and 8
#     kinds     depthwise, transposed and grouped convolutions, and zero points, to kinds.json
#     efficientnet  the whole of EfficientNet-Lite0: int8 and JAX bf16, to efficientnet_lite0.json
#     models    networks that quantize_model makes of plain Flax, and JAX bf16, to models.json
#     sanitizer  the own kernels under compute-sanitizer, to sanitizer.json
#     summary   merges the files into summary.json and shows it
#
# All of them, in this order, without a STAGE: what the targets need comes before the optional rest.
# OUT_DIR is tests/bench/results/<gpu> if left out; PYTHON is the interpreter, python by default.
# No stage takes longer than LIMIT seconds (570 by default). One that is cut off leaves files that
# are whole, and a later run of a stage from layers on, but for startup and summary, goes on from
# them if commit, versions and device are the same. Fails if a stage does, but runs all of them
# first.
#
# On an H200, 46 layers with int8 and JAX bf16 took 282 s (`seconds` in results/h200/layers.json);
# the stage `layers` has 8 more, and the seed. Of the other stages no time is known yet.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python}
limit=${LIMIT:-570}
stages=(tests rankings layers resnet50 startup rivals suites kinds efficientnet models)
stages+=(sanitizer summary)
networks=(resnet50 resnet50_plain resnet18 resnext50 vgg16 unet mobilenet_v2)
networks+=(efficientnet_lite0 yolov8s)
bf16=(bf16 bf16_without_graph bf16_blocks)

if [[ " ${stages[*]} " == *" ${1:-none} "* ]]; then
  stages=("$1")
  shift
elif [[ $# -gt 0 && $1 != */* && ! -d $1 ]]; then
  echo "$1 is neither a folder nor one of: ${stages[*]}" >&2
  exit 2
fi
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0)  # such as NVIDIA H100 80GB HBM3
gpu=${gpu#NVIDIA }
gpu=${gpu%% *}
out=$(realpath --canonicalize-missing "${1:-$root/tests/bench/results/${gpu,,}}")
mkdir -p "$out"
cd "$root"

# A script of tests/bench with its arguments; no longer than what is left of the stage.
bench() {
  local script=$1
  shift
  run "$python" "tests/bench/$script.py" "$@"
}

# As by Ctrl-C, so that pytest writes its report; what is deaf to that is killed.
run() {
  local left=$((limit - SECONDS + started))
  if ((left <= 0)); then
    echo "no time is left for: $*" >&2
    return 124
  fi
  timeout --signal=INT --kill-after=20 "$left" "$@"
}

tests() {
  # Several processes, which share the GPU's memory: most of the time is the oracle's and that of
  # compilers.
  JAX_QCONV_REQUIRE_GPU=1 JAX_QCONV_GPU_REPORT=$out/gpu_tests.json \
    XLA_PYTHON_CLIENT_PREALLOCATE=false OPENBLAS_NUM_THREADS=1 \
    run "$python" -m pytest -q -p no:benchmark -n "${WORKERS:-4}" --durations=20 tests/gpu
}

rankings() {
  # Less than the limit, for the building of plans that is under way at the end.
  bench rankings --out "$out" --seconds $((limit * 4 / 5)) ${LIKE:+--like "$LIKE"}
}

layers() {
  bench layers --suite resnet50 resnet50_plain --batch 128 1 --systems int8 "${bf16[@]}" seed \
    --out "$out"
}

resnet50() {
  bench resnet50 --batch 128 1 --out "$out" \
    --systems int8 int8_constants bf16 bf16_graph bf16_blocks bf16_blocks_graph \
    bf16_blocks_graph_constants seed
}

startup() {
  bench startup --out "$out"
}

rivals() {
  local status=0
  bench resnet50 --batch 128 1 --out "$out" || status=$?
  bench layers --suite resnet50 --batch 128 --out "$out" --systems int8 "${bf16[@]}" seed \
    xla_int8 xla_int8_fused qwix torch_bf16 torch_bf16_graph torch_bf16_compiled || status=$?
  return $status
}

suites() {
  bench layers --suite "${networks[@]}" --batch 128 1 32 8 --systems int8 "${bf16[@]}" \
    --out "$out"
}

kinds() {
  bench kinds --out "$out"
}

efficientnet() {
  bench efficientnet --batch 128 1 --out "$out"
}

models() {
  bench models --out "$out"
}

sanitizer() {
  bench sanitizer --out "$out"
}

summary() {
  bench summary "$out"
}

status=0
for stage in "${stages[@]}"; do
  started=$SECONDS
  code=0
  "$stage" || code=$?
  echo "=== $stage: $((SECONDS - started)) s$( ((code == 0)) || echo ", failed with $code")"
  ((code == 0)) || status=1
done
exit $status
