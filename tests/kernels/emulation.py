"""Own kernels compiled for the host, from the very source that NVRTC gets, and run there."""

from __future__ import annotations

import ctypes
import pathlib
import subprocess
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_qconv import _native
from jax_qconv._problem import Problem

HERE = pathlib.Path(__file__).parent
OPERANDS = ("x", "w", "z", "m", "b", "r", "m_r", "z_r", "lower", "upper", "slopes", "m_y", "b_y")
"""Members of the kernels' Operands but for the output, in their order."""

OUT = ("int8", "int32", "float32", "bfloat16", "float16")
ACTIVATIONS = (
    "none", "relu", "clip", "leaky_relu", "prelu", "hard_sigmoid", "hard_swish", "sigmoid", "tanh",
    "silu", "gelu", "gelu_tanh",
)  # fmt: skip
OFFSETS = ("none", "channel", "map")


class Emulated:
    """Kernels that are collected, compiled together, and then run."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.sources: dict[str, str] = {}  # by namespace
        self.runs: list[str] = []
        self.kernels: dict[tuple[str, str], tuple[str, int, int, int, bool]] = {}
        self.library: Any = None

    def add_plan(self, problem: Problem, plan: str) -> None:
        """A plan of an engine of own kernels."""
        kernel = _native.extension().own_kernel(str(problem), plan)
        space = f"kernel_{len(self.kernels)}"
        self._add_source(space, kernel["source"])
        self._add_run(space, f"{kernel['function']}(*o)")
        self.kernels[str(problem), plan] = (
            f"run_{len(self.kernels)}", kernel["blocks"], 1, kernel["threads"],
            "__syncthreads" in kernel["source"] and "kStaged = false" not in kernel["source"],
        )  # fmt: skip

    def add_checker(self, problem: Problem) -> None:
        """The exact convolution that plans are verified against, as the checker launches it."""
        if "checker" not in self.sources:
            source = _native.extension().checker_source()
            # What follows is in the GPU's own language.
            self._add_source(
                "checker", source[: source.index('extern "C" __global__ void fill')] + "}"
            )
        grouped = problem.groups > 1
        function = "reference_grouped" if grouped else "reference_conv"
        self._add_run("checker", f"{function}({literal(problem)}, *o)")
        n_pixels, k = np.prod(problem.out_shape[:-1]), problem.out_shape[-1]
        blocks = (3, 1) if grouped else (-(-n_pixels // 64), -(-k // 64))
        self.kernels[str(problem), "checker"] = (
            f"run_{len(self.kernels)}", *map(int, blocks), 256, not grouped,
        )  # fmt: skip

    def _add_source(self, space: str, source: str) -> None:
        source = source.replace("namespace jax_qconv", f"namespace {space}")
        self.sources[space] = source.replace('extern "C" __global__', "__global__")

    def _add_run(self, space: str, call: str) -> None:
        self.runs.append(
            f"""
            extern "C" void run_{len(self.kernels)}(
                const {space}::Operands* o, unsigned columns, unsigned rows, unsigned threads,
                bool waiting) {{
              using namespace {space};
              run_grid([&] {{ {call}; }}, columns, rows, threads, waiting);
            }}"""
        )

    def compile(self) -> None:
        """All that was added, as one library."""
        source, library = self.folder / "kernels.cc", self.folder / "kernels.so"
        source.write_text("\n".join(['#include "emulate.h"', *self.sources.values(), *self.runs]))
        options = ["-std=c++20", "-O0", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
        subprocess.run(["g++", *options, f"-I{HERE}", "-o", library, source], check=True)
        self.library = ctypes.CDLL(str(library))

    def run(self, problem: Problem, plan: str, operands: tuple[Any, ...]) -> np.ndarray:
        """The output of a kernel; what it leaves unwritten is -91."""
        arrays = {
            name: np.ascontiguousarray(np.asarray(value))
            for name, value in zip(problem.operand_names, operands, strict=True)
        }
        dtype = jnp.dtype(problem.out_dtype)
        out = np.full(np.prod(problem.out_shape) * dtype.itemsize, 0xA5, np.uint8).view(dtype)
        places = [arrays[n].ctypes.data if n in arrays else None for n in OPERANDS]
        function, *grid, waiting = self.kernels[str(problem), plan]
        getattr(self.library, function)(
            (ctypes.c_void_p * (len(OPERANDS) + 1))(*places, out.ctypes.data),
            *map(ctypes.c_uint, grid),
            ctypes.c_bool(waiting),
        )
        return out.reshape(problem.out_shape)


def literal(problem: Problem) -> str:
    """The problem as ConvParams."""

    def axes(values: Any, fill: int) -> str:
        return "{" + ", ".join(map(str, [fill] * (3 - problem.rank) + list(values))) + "}"

    p = problem
    sizes = (p.x_shape[1:-1], p.w_shape[1:-1], p.out_shape[1:-1], p.strides)
    pads = axes([before for before, _ in p.padding], 0)
    fields = [
        p.x_shape[0], p.x_shape[-1], p.w_shape[0], p.groups, *[axes(s, 1) for s in sizes], pads,
        axes(p.dilation, 1), OUT.index(p.out_dtype), ACTIVATIONS.index(p.activation),
        f"{p.slope!r}f", OFFSETS.index(p.offset), int(p.residual), int(p.residual_zero_point),
        int(p.activation_first), int(p.requantize),
    ]  # fmt: skip
    return "ConvParams{" + ", ".join(map(str, fields)) + "}"
