"""What the benchmarks' programs become on an H100: a loop around one graph of all the calls."""

from __future__ import annotations

import h100
import pytest
from bench import systems, timing
from layers import RESNET50

CALLS, ROUNDS = 6, 10
STEM, *OTHERS = RESNET50

# The thunks of a call; these kinds are told twice in their lines.
OURS = ["kCustomCall"] * 2
JAX = ["kConvolution"] * 2
EPILOGUE = ["kCustomKernel"]
SYSTEMS = {
    "int8": (systems.int8, OURS),
    "bf16": (lambda data: systems.bf16(data, graph=True), JAX),
    "bf16 without graph": (lambda data: systems.bf16(data, graph=False), JAX),
    "JAX's int8": (systems.xla_int8, JAX + EPILOGUE),
}


@pytest.mark.parametrize("layer", OTHERS[:3], ids=lambda layer: layer.name)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_program_is_a_loop_of_the_calls_and_nothing_else(layer, name, tmp_path):
    make, call = SYSTEMS[name]
    system = make(systems.Data.make(layer, 1))
    hlo, before, body = compile_program(system, tmp_path)
    assert hlo.count(f'custom_call_target="{system.target}') == CALLS  # none merged
    assert f'"known_trip_count":{{"n":"{ROUNDS}"}}' in hlo  # no look at the device in each round
    assert call[0] not in before
    counter = ["kCustomKernel"]
    assert body == ["kCommandBuffer"] * system.graph + counter + call * CALLS


def test_the_padded_stem_needs_nothing_else_either(tmp_path):
    _, _, body = compile_program(systems.int8(systems.Data.make(STEM, 1)), tmp_path)
    assert body == ["kCommandBuffer", "kCustomKernel"] + OURS * CALLS


def compile_program(system, folder):
    """HLO, and the kinds of thunks before the loop and in its body."""
    arrays = [system.output] * CALLS, system.shared, [system.own] * CALLS
    options = {"xla_gpu_autotune_level": 0, "xla_dump_to": str(folder)}
    lowered = timing.lower(system, ROUNDS, *h100.shapes(arrays))
    hlo = lowered.compile(compiler_options=timing.compiler_options(system) | options).as_text()
    # thunk_sequence_after_thunk_passes is written only where these change something.
    dump = max(folder.glob("*thunk_sequence*.txt"), key=lambda path: len(path.name))
    before, _, body = dump.read_text().partition("body:")
    return hlo, *([w for w in part.split() if w.startswith("k")] for part in (before, body))
