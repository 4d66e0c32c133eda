"""Five hundred random convolutions, every output element bit for bit against the oracle."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from cases import Case, Geometry

PROBLEMS = 500
CHUNK = 20
# Most that the oracle computes in a fraction of a second.
MACS = 2.5e9
INPUTS = 8e6
OUTPUTS = 6e6


def random_geometry(rng: np.random.Generator) -> Geometry:
    """Shapes of every kind: few and many channels, odd sizes, strides, asymmetric padding."""

    def channels() -> int:
        common = [3, 8, 16, 32, 64, 64, 128, 128, 256, 512]
        return int(rng.choice(common) if rng.random() < 0.6 else rng.integers(1, 300))

    c, k = channels(), channels()
    if rng.random() < 0.5:
        kernel = (int(rng.choice([1, 3, 3, 5])),) * 2
    else:
        kernel = tuple(map(int, rng.integers(1, 8, 2)))
    strides = tuple(map(int, rng.choice([1, 1, 2, 3], 2)))
    dilation = tuple(map(int, rng.choice([1, 1, 1, 2], 2)))
    if rng.random() < 0.4:
        padding = str(rng.choice(["SAME", "VALID"]))
    else:
        padding = tuple(tuple(map(int, rng.integers(0, 4, 2))) for _ in range(2))
    extent = [(n - 1) * d + 1 for n, d in zip(kernel, dilation, strict=True)]
    n = int(rng.choice([1, 2, 3, 8, 16]))
    taps = c * math.prod(kernel)
    inputs_per_output = c * math.prod(strides) / k
    outputs = min(OUTPUTS, MACS / taps, INPUTS / inputs_per_output) * rng.uniform(0.5, 1)
    side = math.sqrt(outputs / (n * k))
    shape = side * rng.uniform(0.7, 1.4), side
    size = [max(e, math.ceil(s * st)) for e, s, st in zip(extent, shape, strides, strict=True)]
    x_shape = (n, *size, c)
    return Geometry(x_shape, (k, *kernel, c), strides, dilation, padding, padding)


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    out_dtype = str(rng.choice(["int8"] * 6 + ["float32", "bfloat16", "float16", "int32"]))
    bare = out_dtype == "int32"
    return Case(
        random_geometry(rng),
        seed=seed,
        values=str(rng.choice(["any", "any", "any", "extreme", "large"])),
        dyadic=bool(rng.random() < 0.3),
        per_channel=bool(rng.random() < 0.8),
        bias=not bare,
        residual=not bare and bool(rng.random() < 0.4),
        activation="none" if bare else str(rng.choice(["none", "relu", "clip", "leaky_relu"])),
        out_dtype=out_dtype,
    )


def random_plan(case: Case, seed: int) -> str | None:
    """For three problems of four a random configuration; the others get the one that is chosen."""
    rng = np.random.default_rng([seed, 1])
    if rng.random() < 0.25:
        return None
    if case.geometry.x_shape[3] > 32 or case.geometry.x_shape[3] == 16:
        return f"cudnn:4:cfg={rng.integers(0, 56)}"
    return f"cudnn:7:cfg={rng.integers(0, 42)}"


def check(seed: int, account) -> None:
    case = random_case(seed)
    plan = random_plan(case, seed)
    try:
        got = case.run(jit=True, bound=case.out_dtype != "int32", implementation="cudnn", plan=plan)
    except jax.errors.JaxRuntimeError as error:
        # cuDNN doesn't have every configuration for every problem, or asks for workspace; one
        # whose results are wrong is refused by the checker.
        reasons = [r for r in ("building plan", "workspace", "elements differ") if r in str(error)]
        if plan is None or not reasons:
            raise
        account.refused[f"{plan}: {reasons[0]}"] += 1
        plan = None
        got = case.run(jit=True, bound=case.out_dtype != "int32", implementation="cudnn")
    try:
        account.same(got, case.expected())
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, plan {plan}: {case}\n{error}") from None
    with account.lock:
        account.seeds.append(seed)
        account.plans[plan or "chosen"] += 1


@pytest.mark.parametrize("first", range(0, PROBLEMS, CHUNK))
def test_random_problems_are_exact(first, account, threads):
    for job in [threads.submit(check, seed, account) for seed in range(first, first + CHUNK)]:
        job.result()
