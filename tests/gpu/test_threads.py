"""Several threads and several GPUs share plans, handles and compiled programs."""

from __future__ import annotations

import concurrent.futures

import jax
import numpy as np
import pytest
from cases import Case, Geometry
from jax.sharding import PartitionSpec as P

import jax_qconv as q


def case(channels: int, seed: int = 0) -> Case:
    geometry = Geometry((4, 14, 14, channels), (64, 3, 3, channels), padding="SAME", pads="SAME")
    return Case(geometry, seed=seed, activation="relu")


def test_threads_that_compile_and_run_at_once_are_exact(account):
    """Eight threads: four problems, so that plans are both built at once and waited for."""
    problems = [case(64), case(128), case(24), case(96)] * 2
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        runs = [threads.submit(problem.run, jit=True) for problem in problems]
        for problem, run in zip(problems, runs, strict=True):
            account.same(run.result(), problem.expected())


def arrays(seed: int):
    data = case(64, seed).arguments
    packed = q.prepack(
        data["w"], data["bias"], weight_scale=data["w_scale"], layout="OHWI", padding="SAME"
    ).bind(x_scale=data["x_scale"], out_scale=data["out_scale"], activation="relu")
    return q.QTensor(data["x"], data["x_scale"]), packed


def test_one_program_runs_in_many_threads(account):
    expected = [case(64, seed).expected() for seed in range(8)]
    inputs = [arrays(seed) for seed in range(8)]
    run = jax.jit(lambda x, packed: q.qconv(x, packed).values)
    run(*inputs[0]).block_until_ready()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            for got, want in zip(threads.map(lambda a: run(*a), inputs), expected, strict=True):
                account.same(got, want)


@pytest.fixture
def two(gpus):
    if len(gpus) < 2:
        pytest.skip("needs two GPUs")
    return gpus[:2]


def test_a_program_on_the_second_gpu_only(two, account):
    x, packed = jax.device_put(arrays(0), two[1])
    out = jax.jit(q.qconv)(x, packed).values
    assert out.devices() == {two[1]}
    account.same(out, case(64).expected())


def test_one_program_shared_by_two_gpus(two, account):
    x, packed = arrays(0)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=two)
    sharded = jax.jit(
        jax.shard_map(
            lambda x, packed: q.qconv(x, packed).values,
            mesh=mesh,
            in_specs=(x.specs(P("x")), P()),
            out_specs=P("x"),
        )
    )
    for _ in range(3):
        account.same(np.asarray(sharded(x, packed)), case(64).expected())
