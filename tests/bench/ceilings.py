"""What this GPU reaches at best: bytes a second of a copy, int8 operations a second of a matrix
product. The other half of the roofline, beside nominal speeds."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench.record import error_text

PRODUCTS = ((4096, 4096, 4096), (8192, 8192, 4096), (8192, 8192, 8192), (16384, 8192, 4096))
"""M, N and K of the products that are tried."""

TIMES = 10
"""Products in a row, of which the mean is taken."""

REPEATS = 3

METHOD = """\
copy_gbps is what a kernel reached that reads and writes 2 GiB. int8_tops is the most that a
product of random int8 matrices to int32 reached, of several sizes, through XLA and through
torch._int_mm (int8_products has them all)."""


def measure() -> dict[str, Any]:
    """Both ceilings, and every product that was tried."""
    products = int8_products()
    return {
        "copy_gbps": copy_gbps(),
        "int8_tops": max((row["tops"] for row in products if "tops" in row), default=None),
        "int8_products": products,
    }


def copy_gbps(nbytes: int = 2**31, times: int = 20) -> float:
    """GB/s, read and written, of a kernel that passes over so many bytes."""

    @functools.partial(jax.jit, donate_argnums=0)
    def increment(values: jax.Array) -> jax.Array:
        return values + jnp.uint32(1)

    values = increment(jnp.zeros(nbytes // 4, jnp.uint32)).block_until_ready()
    start = time.perf_counter()
    for _ in range(times):
        values = increment(values)
    values.block_until_ready()
    return 2 * nbytes * times / (time.perf_counter() - start) / 1e9


def int8_products() -> list[dict[str, Any]]:
    """TOPS of each product with each library; one that fails has its error instead."""
    rows = []
    for size in PRODUCTS:
        for library in ("xla", "torch"):
            row: dict[str, Any] = {"library": library, "mnk": list(size)}
            try:
                seconds = _seconds(product(library, *size))
                row["tops"] = 2 * math.prod(size) / seconds / 1e12
            except Exception as error:
                row["error"] = error_text(error)
            rows.append(row)
    return rows


def product(library: str, m: int, n: int, k: int, *, device: str = "cuda") -> Callable[[], Any]:
    """Dispatches the product of `matrices` and returns its result, which may be unfinished."""
    a, b = matrices(m, n, k)
    if library == "torch":
        import torch

        left, right = (torch.tensor(matrix, device=device) for matrix in (a, b))
        return lambda: torch._int_mm(left, right.t())
    dot = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=(((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return functools.partial(jax.jit(dot), jnp.asarray(a), jnp.asarray(b))


def matrices(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``[M, K]`` and, transposed, for tensor cores want both along K, ``[N, K]``; random."""
    rng = np.random.default_rng(0)
    a, b = (np.frombuffer(rng.bytes(rows * k), np.int8).reshape(rows, k) for rows in (m, n))
    return a, b


def _seconds(multiply: Callable[[], Any]) -> float:
    """Of a product, in the best of `REPEATS`."""
    _wait(multiply())
    best = math.inf
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(TIMES):
            out = multiply()
        _wait(out)
        best = min(best, (time.perf_counter() - start) / TIMES)
    return best


def _wait(out: Any) -> None:
    if isinstance(out, jax.Array):
        out.block_until_ready()
    else:
        import torch

        torch.cuda.synchronize()
