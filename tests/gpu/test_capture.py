"""CUDA graphs: convolutions are captured, replayed with other buffers, and keep their plans."""

from __future__ import annotations

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qconv as q


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(3, 3, 64, 64)), jnp.float32)
    packed = q.prepack(weight).bind(
        x_scale=0.1, out_scale=0.1, residual_scale=0.1, activation="relu"
    )
    xs = [jnp.asarray(rng.integers(-128, 128, (4, 14, 14, 64), np.int8)) for _ in range(4)]
    return xs, packed


def chain(implementation):
    def run(x, packed):
        x = q.QTensor(x, jnp.float32(0.1))
        for _ in range(6):
            x = q.qconv(x, packed, residual=x, implementation=implementation)
        return x.values

    return jax.jit(run)


def test_six_calls_run_as_one_graph_on_this_gpu(net, tmp_path):
    xs, packed = net
    run = chain("cudnn").lower(xs[0], packed).compile({"xla_dump_to": str(tmp_path)})
    (dump,) = tmp_path.glob("*thunk_sequence_after_thunk_passes.txt")
    thunks = [line.split()[1] for line in dump.read_text().splitlines() if line.strip()]
    assert thunks[0] == "kCommandBuffer" and thunks.count("kCustomCall") == 6
    run(xs[0], packed).block_until_ready()


def test_replays_with_other_buffers_are_exact(net, account):
    xs, packed = net
    run, reference = chain("cudnn"), chain("reference")
    expected = [np.asarray(reference(x, packed)) for x in xs]
    for _ in range(5):
        for x, want in zip(xs, expected, strict=True):
            account.same(run(jnp.copy(x), packed), want)


def test_plans_live_as_long_as_the_executable_that_captured_them(net, account):
    xs, packed = net
    expected = np.asarray(chain("reference")(xs[0], packed))
    compiled = chain("cudnn").lower(xs[0], packed).compile()
    account.same(compiled(xs[0], packed), expected)
    jax.clear_caches()
    gc.collect()
    for _ in range(3):
        account.same(compiled(xs[0], packed), expected)


def test_a_loop_of_graphs_with_bias_is_exact(account):
    """Biases and scales are read anew in each round, wherever the loop keeps them."""
    rng = np.random.default_rng(1)
    sets = [jnp.asarray(rng.integers(-128, 128, (2, 14, 14, 64), np.int8)) for _ in range(6)]
    weight = jnp.asarray(rng.normal(size=(3, 3, 64, 64)), jnp.float32)
    bias = jnp.asarray(rng.normal(0, 30, 64), jnp.float32)
    packed = q.prepack(weight, bias).bind(x_scale=0.1, out_scale=3.0, activation="relu")

    def loop(implementation):
        def one_round(_, outs):
            xs = [jax.lax.optimization_barrier((x, outs))[0] for x in sets]
            x_scale = jnp.float32(0.1)
            return [
                q.qconv(q.QTensor(x, x_scale), packed, implementation=implementation).values
                for x in xs
            ]

        outs = [jnp.zeros_like(x) for x in sets]
        return jax.jit(lambda outs: jax.lax.fori_loop(0, 4, one_round, outs))(outs)

    for got, want in zip(loop("cudnn"), loop("reference"), strict=True):
        account.same(got, np.asarray(want))
