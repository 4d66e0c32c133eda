"""Batches of data, as `quantize_model` and what judges its result take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def arguments(batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Each batch as the arguments of a function after its parameters.

    Args:
        batches: each an array or a pytree, the only argument, or a tuple of several.

    Raises:
        TypeError: if it looks like a single batch.
    """
    if hasattr(batches, "shape") or isinstance(batches, str | dict):
        raise TypeError(
            f"batches must be an iterable of batches, got {type(batches).__name__}; wrap a single "
            "batch in a list."
        )
    for batch in batches:
        yield batch if isinstance(batch, tuple) else (batch,)
