"""Every own kernel compiles for every supported architecture, without a GPU, and spills nothing."""

from __future__ import annotations

import cubin
import pytest

from jax_qconv import _native
from jax_qconv._problem import Problem

ARCHITECTURES = [80, 86, 89, 90, 100, 120]
NET = 90  # where everything is compiled


def depthwise(
    kernel=3, stride=1, *, rank=2, multiplier=1, dilation=1, n=32, size=28, **fields
) -> str:
    channels = 64
    fields = {"out_dtype": "int8", "activation": "relu"} | fields
    return str(
        Problem.make(
            x_shape=(n, *[size, size, 6][:rank], channels),
            w_shape=(channels * multiplier, *[kernel] * rank, 1),
            strides=(stride,) * rank,
            padding="SAME",
            dilation=(dilation,) * rank,
            groups=channels,
            **fields,
        )
    )


TILED = {
    "3x3": depthwise(),
    "3x3/2": depthwise(stride=2),
    "5x5": depthwise(5),
    "5x5/2": depthwise(5, 2),
    "7x7": depthwise(7),
    "7x7/2": depthwise(7, 2),
    "dilated": depthwise(dilation=2),
    "small": depthwise(n=1, size=7),
    "large": depthwise(n=128, size=112),
    "int32": depthwise(out_dtype="int32", activation="none"),
    "float32": depthwise(out_dtype="float32"),
    "bfloat16": depthwise(out_dtype="bfloat16", activation="clip"),
    "float16": depthwise(out_dtype="float16", activation="leaky_relu", slope=0.1),
    "residual": depthwise(residual=True, residual_zero_point=True, activation_first=True),
    "zero-point": depthwise(offset="map", activation="prelu"),
    "zero-point-7x7": depthwise(7, offset="channel", residual=True),
    "hard-swish": depthwise(activation="hard_swish", requantize=True),
    "silu": depthwise(activation="silu", requantize=True),
    "gelu": depthwise(5, activation="gelu", requantize=True, residual=True),
}
GENERAL = {
    "multiplier": depthwise(multiplier=2, offset="map", residual=True, activation="silu"),
    "3-D": depthwise(rank=3, activation="prelu", out_dtype="bfloat16"),
}
PROBLEMS = TILED | GENERAL
EVERYWHERE = ["3x3", "7x7", "bfloat16", "silu", "3-D"]
# Each is much like one of the others.
SLOW = ["3x3/2", "5x5", "7x7/2", "dilated", "small", "large", "int32", "float32", "float16"]


def compiled(source: str, compute_capability: int) -> bytes:
    try:
        return _native.extension().compile_kernels(source, compute_capability)
    except RuntimeError as error:
        if "NVRTC" in str(error) and "can't be loaded" in str(error):
            pytest.skip(str(error))
        raise


def usage(problem: str, plan: str, compute_capability: int) -> dict[str, int]:
    kernel = _native.extension().own_kernel(problem, plan)
    return cubin.usage(compiled(kernel["source"], compute_capability), kernel["function"])


@pytest.mark.parametrize("compute_capability", ARCHITECTURES)
def test_the_checker_compiles(compute_capability):
    code = compiled(_native.extension().checker_source(), compute_capability)
    for name in ("reference_conv", "reference_grouped", "fill", "spin", "compare"):
        assert cubin.usage(code, name)["code"] > 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PROBLEMS]
)
def test_what_a_first_call_tries_spills_nothing(name):
    plans = _native.extension().own_plans(PROBLEMS[name])
    assert (len(plans) > 6) == (name in TILED) and plans[-1] == "depthwise:1"
    for plan in [*plans[:6], plans[-1]]:
        assert usage(PROBLEMS[name], plan, NET)["frame"] == 0, plan


@pytest.mark.parametrize("compute_capability", [c for c in ARCHITECTURES if c != NET])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_best_guess_spills_nothing_anywhere(name, compute_capability):
    best = _native.extension().own_plans(PROBLEMS[name])[0]
    assert usage(PROBLEMS[name], best, compute_capability)["frame"] == 0


def test_a_memory_bound_kernel_leaves_room_for_many_threads():
    best = _native.extension().own_plans(TILED["large"])[0]
    assert usage(TILED["large"], best, NET)["registers"] <= 96


def pointwise(c: int, k: int, *, size=28, n=32, **fields) -> str:
    fields = {"out_dtype": "int8", "activation": "relu"} | fields
    return str(
        Problem.make(
            x_shape=(n, size, size, c),
            w_shape=(k, 1, 1, c),
            strides=(1, 1),
            padding="VALID",
            dilation=(1, 1),
            groups=1,
            **fields,
        )
    )


POINTWISE = {
    "64": pointwise(64, 64),
    "expansion": pointwise(64, 256, size=56, residual=True),
    "long": pointwise(128, 256, residual=True, residual_zero_point=True, activation_first=True),
    "zero-point": pointwise(32, 192, offset="channel", activation="prelu"),
    "hard-swish": pointwise(96, 128, activation="hard_swish", requantize=True),
    "leaky": pointwise(128, 512, activation="leaky_relu", slope=0.1, residual=True),
    "narrow": pointwise(16, 96, size=56),
    "uneven": pointwise(24, 144, size=56, activation="clip"),
    "project": pointwise(144, 24, size=56, activation="none"),
    "most": pointwise(256, 40, activation="none", residual=True, offset="channel"),
}


def stem(c: int, k: int, kernel: int, stride: int, *, size=224, n=32, **fields) -> str:
    fields = {"out_dtype": "int8", "activation": "relu"} | fields
    return str(
        Problem.make(
            x_shape=(n, size, size, c),
            w_shape=(k, kernel, kernel, c),
            strides=(stride, stride),
            padding="SAME",
            dilation=(1, 1),
            groups=1,
            **fields,
        )
    )


STEM = {
    "7x7": stem(4, 64, 7, 2),
    "3x3/2": stem(4, 32, 3, 2, activation="clip"),
    "3x3": stem(4, 64, 3, 1, offset="channel"),
    "wide": stem(16, 96, 4, 1, size=112, activation="prelu", offset="channel"),
    "hard-swish": stem(4, 16, 3, 2, activation="hard_swish", requantize=True),
}
PRODUCTS = POINTWISE | STEM


def plans_of(engine: str, problem: str) -> list[str]:
    plans = _native.extension().own_plans(problem)
    return [plan for plan in plans if plan.startswith(f"{engine}:")]


@pytest.mark.parametrize("k", range(8, 520, 8))
def test_blocks_have_as_many_channels_as_divide_them(k):
    plans = plans_of("pointwise", pointwise(64, k, size=56))
    cols = max(int(plan.split("cols=")[1].split(",")[0]) for plan in plans)
    dividing = [n for n in range(8, min(k, 128) + 1, 8) if k % n == 0]
    assert cols in dividing and (cols > 8 or dividing == [8])


WGMMA = {
    "64": pointwise(64, 64, size=56),
    "expansion": pointwise(256, 1024, size=14, n=128, residual=True),
    "most": pointwise(512, 2048, size=7, n=128, residual=True, residual_zero_point=True),
    "zero-point": pointwise(32, 192, offset="channel", activation="prelu"),
    "hard-swish": pointwise(96, 144, activation="hard_swish", requantize=True, residual=True),
    "3x3": stem(64, 64, 3, 1, size=56),
    "3x3-residual": stem(64, 64, 3, 1, size=56, residual=True, activation_first=True),
    "narrow": stem(32, 32, 3, 1, size=56, activation="leaky_relu", slope=0.1),
}


@pytest.mark.parametrize("name", WGMMA)
def test_warpgroup_products_spill_nothing(name):
    plans = plans_of("wgmma", WGMMA[name])
    assert len(plans) >= 4
    for plan in plans:
        source = _native.extension().own_kernel(WGMMA[name], plan)["source"]
        assert cubin.usage(compiled(source, NET), "wgmma")["frame"] == 0, plan


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_spill_nothing_and_leave_room_for_two_blocks(name):
    plans = _native.extension().own_plans(PRODUCTS[name])
    assert len(plans) >= 2
    for plan in plans[:3]:
        found = usage(PRODUCTS[name], plan, NET)
        assert found["frame"] == 0, plan
        threads = _native.extension().own_kernel(PRODUCTS[name], plan)["threads"]
        assert found["registers"] * threads <= 2**15, plan


@pytest.mark.parametrize("compute_capability", [c for c in ARCHITECTURES if c != NET])
def test_products_spill_nothing_anywhere(compute_capability):
    for problem in (POINTWISE["expansion"], STEM["7x7"]):
        best = _native.extension().own_plans(problem)[0]
        assert usage(problem, best, compute_capability)["frame"] == 0


ALL = [*PROBLEMS.values(), *PRODUCTS.values(), *WGMMA.values()]


@pytest.mark.parametrize("problem", ALL)
def test_plan_names_are_spelled_as_they_are_parsed(problem):
    extension = _native.extension()
    plans = extension.own_plans(problem)
    assert [extension.parse_plan(plan) for plan in plans] == plans
    assert len(set(plans)) == len(plans)


DENSE = "x=1,8,8,128 w=16,3,3,128 strides=1,1 padding=1,1,1,1 dilation=1,1 groups=1 out=int8 "
DENSE += "activation=none slope=0.0 residual=0"


@pytest.mark.parametrize(
    ("problem", "plan", "message"),
    [
        (DENSE, "depthwise:1", "its groups aren't of one input channel each"),
        (DENSE, "pointwise:0:rows=64,cols=64,run=1", "1x1 convolutions to int8"),
        (POINTWISE["64"], "pointwise:0:rows=64,cols=64", "run at least 1"),
        (POINTWISE["64"], "pointwise:0:rows=48,cols=64,run=1", "rows must be a multiple of 32"),
        (POINTWISE["64"], "pointwise:0:rows=64,cols=128,run=1", "divide the 64 output channels"),
        (POINTWISE["64"], "pointwise:1:rows=64,cols=64,run=1", "there is pointwise:0"),
        (stem(4, 64, 3, 65), "stem:0:rows=2,cols=16,run=1", "strides beyond 64"),
        (POINTWISE["64"], "stem:0:rows=2,cols=16,run=1", "several taps"),
        (STEM["7x7"], "stem:0:rows=1,cols=16,run=1", "one of 32"),
        (STEM["7x7"], "stem:0:rows=64,cols=128,run=1", "too large for shared memory"),
        (POINTWISE["long"], "pointwise:0:rows=512,cols=64,run=1", "too large for shared memory"),
        (DENSE, "wgmma:0:rows=64,cols=64,run=1,product=64", "up to 576 terms"),
        (stem(64, 64, 3, 2), "wgmma:0:rows=64,cols=64,run=1,product=64", "strides of more than"),
        (WGMMA["64"], "wgmma:0:rows=64,cols=64,run=1", "product one of 16"),
        (WGMMA["64"], "wgmma:0:rows=64,cols=96,run=1,product=64", "a multiple of 64"),
        (WGMMA["64"], "wgmma:0:rows=96,cols=64,run=1,product=64", "rows one of that"),
        (WGMMA["64"], "wgmma:1:rows=64,cols=64,run=1,product=64", "there is wgmma:0"),
        (WGMMA["most"], "wgmma:0:rows=128,cols=256,run=1,product=128", "too large for an SM"),
        (TILED["3x3"], "depthwise:0", "needs both rows= and cols="),
        (TILED["3x3"], "depthwise:0:rows=0,cols=1", "must be from 1 to"),
        (TILED["3x3"], "depthwise:0:rows=7,cols=56", "too large for the registers"),
        (TILED["3x3"], "depthwise:2", "there are depthwise:0:rows="),
        (TILED["3x3"], "depthwise:1:rows=4", "there are depthwise:0:rows="),
        (TILED["3x3"], "depthwise:0:cfg=4", "the knob 'cfg=4' that can't be read"),
        (TILED["3x3"], "depthwise", "only 'cudnn' alone, or 'auto'"),
        (TILED["3x3"], "cudnn:4", "isn't one of an engine with own kernels"),
        (GENERAL["3-D"], "depthwise:0:rows=4,cols=4", "tiles are for two axes"),
        (GENERAL["multiplier"], "depthwise:0:rows=4,cols=4", "one output for each input channel"),
    ],
)
def test_a_plan_that_does_not_fit_says_why(problem, plan, message):
    with pytest.raises(ValueError, match=message):
        _native.extension().own_kernel(problem, plan)


def test_other_problems_have_no_own_kernels():
    assert _native.extension().own_plans(DENSE) == []
