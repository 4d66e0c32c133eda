"""What the benchmarks' programs become on an H100: a loop around one graph of all the calls."""

from __future__ import annotations

import h100
import pytest
from bench import systems, timing
from layers import RESNET50

CALLS, ROUNDS = 6, 10
SYSTEMS = {
    "int8": systems.int8,
    "bf16": lambda data: systems.bf16(data, graph=True),
    "bf16 without graph": lambda data: systems.bf16(data, graph=False),
    "JAX's int8": systems.xla_int8,
}
CALL = {"int8": "kCustomCall", "bf16": "kConvolution", "bf16 without graph": "kConvolution"}


def thunks(system, folder):
    """HLO, then kinds of thunks before the loop and in its body."""
    arrays = [system.output] * CALLS, system.shared, [system.own] * CALLS
    options = {"xla_gpu_autotune_level": 0, "xla_dump_to": str(folder)}
    lowered = timing.lower(system, ROUNDS, *h100.shapes(arrays))
    hlo = lowered.compile(compiler_options=timing.compiler_options(system) | options).as_text()
    # The second is written only where there is a graph.
    dumps = sorted(folder.glob("*thunk_sequence*.txt"), key=lambda path: len(path.name))
    before, _, body = dumps[-1].read_text().partition("body:")
    return hlo, *([w for w in part.split() if w.startswith("k")] for part in (before, body))


@pytest.mark.parametrize("layer", RESNET50[:4], ids=lambda layer: layer.name)
@pytest.mark.parametrize("name", CALL)
def test_the_loop_holds_the_calls_and_nothing_else(layer, name, tmp_path):
    system = SYSTEMS[name](systems.Data.make(layer, 1))
    hlo, before, body = thunks(system, tmp_path)
    assert f'"known_trip_count":{{"n":"{ROUNDS}"}}' in hlo  # no look at the device in each round
    assert CALL[name] not in before
    counter = ["kCustomKernel"]
    graph = ["kCommandBuffer"] if system.graph else []
    # Each of these calls is told twice in its line.
    assert body == graph + counter + [CALL[name]] * 2 * CALLS


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_call_is_merged(name, tmp_path):
    system = SYSTEMS[name](systems.Data.make(RESNET50[1], 1))
    hlo, *_ = thunks(system, tmp_path)
    assert hlo.count(f'custom_call_target="{system.target}') == CALLS
