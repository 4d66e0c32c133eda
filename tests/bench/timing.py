"""Device time of a call: many of them in one program, each on memory of its own."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from bench.systems import System

ROUND_BYTES = 120e6
"""What a round touches at least: twice the 60 MB of an H200's L2 cache."""

MIN_CALLS = 16
"""Of a round, unless it touches more than `MOST_BYTES`."""

MOST_BYTES = 2e9
"""Of a round: the systems of a layer are in memory together, and large layers need few calls."""

PROGRAM_SECONDS = 4e-3
"""Of an execution, if calls take no longer than the caller says."""

EXECUTIONS = 5
"""In a row, of which the mean is taken."""

MOST_SECONDS = 1.0
"""Of such a row, unless it is of one execution: some systems are slow beyond what was expected."""

REPEATS = 5
"""Of that, by turns with the other systems."""

GRAPH = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION"
"""What XLA puts into CUDA graphs: its default, and its own convolutions."""

HOW = f"""\
us is the wall clock around {EXECUTIONS} executions of one XLA program (fewer where they take more
than {MOST_SECONDS:g} s) over the number of calls in them: the least of {REPEATS} repeats, which
take turns with those of the other systems; us_median is their median, us_spread what lies between
the least and the most over it. A program is a loop of rounds of calls (calls and rounds are those
of the int8 program). Each call of a round has its own input, weights, residual and output, and a
round touches {ROUND_BYTES / 1e6:.0f} MB or more, twice the L2 cache, so that none of them is found
there; the data are random. The calls of a round run one after another in one CUDA graph, JAX's
convolutions too, which XLA leaves out by default (xla_gpu_enable_command_buffer); the counter of
rounds is one more kernel in it. roofline_us is the larger of operations over nominal int8 peak and
bytes over nominal memory bandwidth, channels unpadded, everything read and written once. exact: all
elements of the outputs of all int8 calls of a round equal those of implementation='reference' on
the same GPU."""

METHOD = f"""\
{HOW} All systems get the same integers; bias, residual and ReLU are part of each. bf16_us is JAX in
bfloat16, with a CUDA graph or without, the 7x7 layer also as 4x4 on blocks of 2x2 pixels, whichever
is fastest (bf16_way); its weights are OHWI, as XLA transposes HWIO ones in each call. xla_int8 is
JAX's own int8 convolution with the same epilogue in jax.numpy, xla_int8_fused with XLA's
experimental fusion of convolutions, qwix with that package's convolution. torch_bf16 is PyTorch in
eager mode, torch_bf16_graph in a CUDA graph, torch_bf16_compiled that of torch.compile; seed is
PyTorch's quantized::conv2d, in eager mode, which is all it has."""


class Program:
    """A compiled loop of calls, with the memory it works on.

    Attributes:
        calls: of a round.
        rounds: of an execution.
        hlo: the optimised program.
        outs: the outputs of the last round, one for each call.
    """

    def __init__(self, system: System, *, calls: int, rounds: int) -> None:
        self.calls, self.rounds = calls, rounds
        self.inputs = system.shared, [jax.tree.map(jnp.copy, system.own) for _ in range(calls)]
        out = system.output
        self.outs = [jnp.zeros(out.shape, out.dtype) for _ in range(calls)]
        lowered = lower(system, rounds, self.outs, *self.inputs)
        self.compiled = lowered.compile(compiler_options=compiler_options(system))
        self.hlo = self.compiled.as_text()

    @classmethod
    def make(cls, system: System, *, least_us: float) -> Program:
        """A program as `METHOD` has it, for calls that take ``least_us`` or more; it has run once.

        Raises:
            RuntimeError: if XLA merged calls or computes them without the kernel that is timed.
        """
        leaves = [*jax.tree.leaves(system.own), system.output]
        nbytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        calls = calls_of_round(nbytes)
        rounds = math.ceil(PROGRAM_SECONDS * 1e6 / (calls * least_us))
        program = cls(system, calls=calls, rounds=rounds)
        (device,) = program.outs[0].devices()
        found = calls if system.target is None else count_calls(program.hlo, system.target)
        if device.platform == "gpu" and found != calls:
            raise RuntimeError(f"{calls} calls became {found} of {system.target}.")
        program.execute(1)
        return program

    def execute(self, times: int) -> float:
        """Microseconds of a call, the mean of so many executions."""
        start = time.perf_counter()
        for _ in range(times):
            self.outs = self.compiled(self.outs, *self.inputs)
        jax.block_until_ready(self.outs)
        return (time.perf_counter() - start) * 1e6 / (times * self.rounds * self.calls)


def calls_of_round(nbytes: float) -> int:
    """How many, if each touches so many bytes."""
    return max(math.ceil(ROUND_BYTES / nbytes), min(MIN_CALLS, int(MOST_BYTES / nbytes)), 2)


def count_calls(hlo: str, target: str) -> int:
    """Custom calls, or fusions that one kernel of cuDNN computes."""
    return sum(hlo.count(f'{key}"{target}') for key in ("custom_call_target=", '"kind":'))


def lower(system: System, rounds: int, outs: Any, shared: Any, sets: Any) -> jax.stages.Lowered:
    """The program of a system; its outputs take the place of earlier ones, ``outs``."""

    @functools.partial(jax.jit, donate_argnums=0)
    def program(outs: Any, shared: Any, sets: Any) -> Any:
        def one_round(index: Any, outs: Any) -> Any:
            # Inputs that seem to depend on what was before keep XLA from moving calls out of the
            # loop, and from merging their epilogues.
            before, results = index, []
            for own in sets:
                own, _ = jax.lax.optimization_barrier((own, before))
                results.append(system.call(shared, *own))
                before = results[-1]
            return results

        return jax.lax.fori_loop(0, rounds, one_round, outs)

    return program.lower(outs, shared, sets)


def compiler_options(system: System) -> dict[str, Any]:
    """Calls run one after another, in a CUDA graph or not."""
    return {
        "xla_gpu_enable_command_buffer": GRAPH if system.graph else "",
        "xla_gpu_command_buffer_scheduling_mode": "SERIALIZE",
        **system.options,
    }


def by_turns(programs: dict[str, Program]) -> dict[str, list[float]]:
    """For each program the microseconds of a call in each repeat."""
    executions = {}
    for name, program in programs.items():
        start = time.perf_counter()
        program.execute(1)
        fit = int(MOST_SECONDS / (time.perf_counter() - start))
        executions[name] = max(1, min(fit, EXECUTIONS))
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(REPEATS):
        for name, program in programs.items():
            times[name].append(program.execute(executions[name]))
    return times
