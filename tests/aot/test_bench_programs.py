"""What the benchmarks' programs become on an H100: a loop around one graph of all the calls."""

from __future__ import annotations

import importlib.util
import re

import h100
import jax
import jax.numpy as jnp
import pytest
from bench import (
    ceilings,
    efficientnet_jax,
    efficientnet_net,
    kind_systems,
    resnet50_jax,
    systems,
    timing,
)
from bench.kind_convs import KINDS
from bench.resnet50_net import CONVS
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
WHOLE = [resnet50_jax.xla_int8_net]
if importlib.util.find_spec("qwix"):
    SYSTEMS["qwix"] = systems.qwix, JAX + EPILOGUE
    WHOLE.append(resnet50_jax.qwix_net)


@pytest.mark.parametrize("layer", OTHERS[:3], ids=lambda layer: layer.name)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_program_is_a_loop_of_the_calls_and_nothing_else(layer, name, tmp_path):
    make, call = SYSTEMS[name]
    system = make(systems.Data.make(layer, 1))
    hlo, before, body = compile_program(system, tmp_path)
    assert timing.count_calls(hlo, system.target) == CALLS  # none merged
    assert f'"known_trip_count":{{"n":"{ROUNDS}"}}' in hlo  # no look at the device in each round
    assert call[0] not in before
    counter = ["kCustomKernel"]
    assert body == ["kCommandBuffer"] * system.graph + counter + call * CALLS


def test_the_stem_needs_no_kernel_beside_its_own(tmp_path):
    _, _, body = compile_program(systems.int8(systems.Data.make(STEM, 1)), tmp_path)
    assert body == ["kCommandBuffer", "kCustomKernel"] + OURS * CALLS


def test_the_stem_of_blocks_is_one_convolution_of_them(tmp_path):
    hlo, before, body = compile_program(systems.bf16_blocks(systems.Data.make(STEM, 1)), tmp_path)
    assert timing.count_calls(hlo, "__cudnn$conv") == CALLS
    assert JAX[0] not in before
    assert [kind for kind in body if kind == JAX[0]] == JAX * CALLS


def test_the_fusion_that_is_asked_for_is_formed(tmp_path):
    system = systems.xla_int8(systems.Data.make(OTHERS[0], 1), fused=True)
    # cuDNN alone knows whether it can have it, and needs a GPU for that.
    with pytest.raises(jax.errors.JaxRuntimeError, match=f'"kind":"{re.escape(system.target)}"'):
        compile_program(system, tmp_path)


KIND_CONVS = {kind: min(convs, key=lambda conv: conv.nbytes(1)) for kind, convs in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_programs_of_other_kinds_are_loops_of_the_calls(kind, tmp_path):
    data = kind_systems.Data.make(KIND_CONVS[kind], 1)
    for name, make in kind_systems.of_kind(kind, data.conv).items():
        system = make(data)
        (folder := tmp_path / name).mkdir()
        hlo, before, body = compile_program(system, folder)
        assert f'"known_trip_count":{{"n":"{ROUNDS}"}}' in hlo, name
        if system.target is None:  # one kernel each, beside the counter
            assert body == ["kCommandBuffer"] + EPILOGUE * (1 + CALLS), name
            continue
        assert timing.count_calls(hlo, system.target) == CALLS, name
        call = OURS if name.startswith("int8") else JAX
        assert call[0] not in before, name
        if name.startswith("int8"):
            # A border is filled with a zero point; a transposed one goes from depth to space.
            filled = data.conv.zero_point and name != "int8_symmetric" and data.conv.kernel > 1
            call = EPILOGUE * filled + call + EPILOGUE * data.conv.transpose
            assert body == ["kCommandBuffer", "kCustomKernel"] + call * CALLS, name
        else:
            assert [thunk for thunk in body if thunk == call[0]] == call * CALLS, name


@pytest.mark.parametrize("conv", [KINDS["transposed"][0], KINDS["transposed"][8]])
def test_a_flipped_transposed_convolution_has_a_kernel_of_its_own(conv, tmp_path):
    data = kind_systems.Data.make(conv, 1)
    for flipped, found in ((False, 0), (True, CALLS)):
        (folder := tmp_path / str(flipped)).mkdir()
        hlo, *_ = compile_program(kind_systems.bf16(data, flipped=flipped), folder)
        assert timing.count_calls(hlo, "__cudnn$convBackwardInput") == found


def test_the_products_of_the_ceiling_are_of_integers():
    product = ceilings.product("xla", 4096, 4096, 4096)
    hlo = h100.compile(product.func, *h100.shapes(product.args))
    assert "s32[4096,4096]" in hlo and "s8[4096,4096]" in hlo
    assert "convert" not in hlo  # to floats, say


@pytest.mark.slow
@pytest.mark.parametrize("net", WHOLE)
def test_the_whole_network_has_convolutions_of_int8(net):
    run, params = net()
    x = jnp.zeros((1, 224, 224, 3), jnp.int8 if net is resnet50_jax.xla_int8_net else jnp.float32)
    hlo = h100.compile(run, *h100.shapes((params, x)))
    convolutions = re.findall(r"custom-call\((.*?)\), .*custom_call_target=\"__cudnn\$conv", hlo)
    assert len(convolutions) == len(CONVS)


@pytest.mark.slow
def test_the_network_of_depthwise_convolutions_is_one_call_for_each():
    run, params = efficientnet_jax.int8_net()
    hlo = h100.compile(run, *h100.shapes((params, jnp.zeros((1, 224, 224, 3), jnp.int8))))
    assert hlo.count('custom_call_target="jax_qconv.conv"') == len(efficientnet_net.CONVS)


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
