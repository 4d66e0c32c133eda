"""Random convolutions of every kind: groups, depthwise, transposed, one to three spatial axes, zero
points, every exact epilogue. JAX_QCONV_KINDS says how many."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cases import Case, Geometry

import jax_qconv

PROBLEMS = int(os.environ.get("JAX_QCONV_KINDS", "300"))
CHUNK = 20
FIRST_SEED = 10_000  # after those of test_random_problems
KINDS = ("dense", "grouped", "depthwise", "transposed", "one axis", "three axes", "stem")


def random_geometry(kind: str, rng: np.random.Generator) -> Geometry:
    """Of a few hundred thousand outputs at most."""
    rank = {"one axis": 1, "three axes": 3}.get(kind, 2)
    if kind == "transposed":
        rank = int(rng.integers(1, 4))

    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(low, high + 1, rank)))

    kernel, strides, dilation = ints(1, 5 if rank < 3 else 3), ints(1, 2), ints(1, 2)
    pads = tuple(tuple(map(int, rng.integers(0, 3, 2))) for _ in range(rank))
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(n + int(rng.integers(0, {1: 200, 2: 24, 3: 6}[rank])) for n in least)
    c, k = (int(rng.choice([3, 8, 16, 20, 32, 48, 64, 96])) for _ in "ck")
    groups, batch = 1, int(rng.choice([1, 2, 5]))
    if kind == "grouped":
        groups = int(rng.choice([2, 3, 4, 8]))
    elif kind == "depthwise":
        groups, c, k = int(rng.choice([5, 16, 32, 72, 96, 144])), 1, int(rng.choice([1, 1, 1, 2]))
    elif kind == "stem":
        c, strides, dilation = int(rng.integers(1, 5)), (2, 2), (1, 1)
    x_shape, w_shape = (batch, *size, c * groups), (k * groups, *kernel, c)
    if kind != "transposed":
        return Geometry(x_shape, w_shape, strides, dilation, pads, pads, groups)
    more = tuple(int(rng.integers(0, stride)) for stride in strides)
    pads = tuple((min(a, 1), min(b, 1)) if n > 2 else (0, 0)
                 for (a, b), n in zip(pads, size, strict=True))  # fmt: skip
    return Geometry(x_shape, w_shape, strides, dilation, pads, pads, 1, True, more)


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    out_dtype = str(rng.choice(["int8"] * 6 + ["float32", "bfloat16", "float16", "int32"]))
    bare = out_dtype == "int32"
    residual = not bare and bool(rng.random() < 0.5)
    present = {"x": True, "out": out_dtype == "int8", "residual": residual}
    exact = ["none", "relu", "clip", "leaky_relu", "prelu", "hard_sigmoid", "hard_swish"]
    return Case(
        random_geometry(KINDS[seed % len(KINDS)], rng),
        seed=seed,
        values=str(rng.choice(["any", "any", "extreme", "large"])),
        dyadic=bool(rng.random() < 0.3),
        bias=not bare,
        residual=residual,
        residual_mode=str(rng.choice(["add", "add_after_activation", "average"])),
        activation="none" if bare else str(rng.choice(exact)),
        out_dtype=out_dtype,
        zero_points=tuple(n for n, there in present.items() if there and rng.random() < 0.5),
    )


def check(seed: int, account) -> None:
    case = random_case(seed)
    got = case.run(jit=True, bound=case.out_dtype != "int32")
    try:
        account.same(got, case.expected())
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {case}\n{error}") from None
    with account.lock:
        account.seeds.append(seed)
        account.plans[KINDS[seed % len(KINDS)]] += 1


@pytest.mark.parametrize("first", range(0, PROBLEMS, CHUNK))
def test_random_kinds_are_exact(first, account, threads):
    seeds = range(FIRST_SEED + first, FIRST_SEED + min(first + CHUNK, PROBLEMS))
    for job in [threads.submit(check, seed, account) for seed in seeds]:
        job.result()


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh"])
def test_smooth_activations_are_within_a_step_of_the_reference(kind):
    geometry = Geometry((4, 14, 14, 64), (64, 3, 3, 64), padding="SAME", pads="SAME")
    case = Case(geometry, out_dtype="int32")
    packed = jax_qconv.prepack(case.arguments["w"], weight_scale=2.0**-11, layout="OHWI")
    x = jax_qconv.QTensor(case.arguments["x"], 0.02)
    outs = [
        jax_qconv.qconv(
            x, packed, out_scale=0.01, activation=kind, implementation=implementation
        ).values
        for implementation in (None, "reference")
    ]
    a, b = (np.asarray(out, np.int32) for out in outs)
    assert np.abs(a - b).max() <= 1
    assert (a != b).mean() < 0.01 and len(np.unique(a)) > 30
