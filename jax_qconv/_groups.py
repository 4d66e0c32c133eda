"""Grouped convolutions with fewer, wider groups: neighbours merged into a dense block.

A kernel for groups of few channels leaves matrix units idle. ``merge`` groups side by side are one
group of ``merge`` times the channels, whose weights are zero off the diagonal: the same sums.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_qconv._spec import padded_channels

DENSE_CHANNELS = 256
"""Up to so many channels all groups become one: the matrix units are fast enough to waste."""

BLOCK_CHANNELS = 64
"""Beyond that, merged groups have at least so many, if any between these two numbers does."""


def merge_by_rule(channels: int, out_channels: int, groups: int) -> int:
    """How many groups to merge: a pure function, equal on every machine.

    Depthwise convolutions are left as they are: they have a kernel of their own.
    """
    if groups == 1 or channels == groups:
        return 1
    if max(channels, out_channels) <= DENSE_CHANNELS:
        return groups
    suited = allowed_merges(channels, out_channels, groups)
    width = min(channels, out_channels) // groups
    wide = [m for m in suited if BLOCK_CHANNELS <= width * m <= DENSE_CHANNELS]
    narrow = [m for m in suited if width * m < BLOCK_CHANNELS]
    return min(wide) if wide else max(narrow) if narrow else min(suited)


def allowed_merges(channels: int, out_channels: int, groups: int) -> list[int]:
    """How many groups can be merged, in order; 1 is none."""
    counts = range(1, groups + 1)
    return [n for n in counts if why_not(channels, out_channels, groups, n) is None]


def why_not(channels: int, out_channels: int, groups: int, merge: int) -> str | None:
    """Why so many groups can't be merged; None if they can."""
    if groups % merge:
        return f"{merge} doesn't divide the {groups} groups"
    if merge == groups or (merge == 1 and channels == groups):
        return None  # dense, or depthwise
    block = channels // groups * merge, out_channels // groups * merge
    for name, size in zip("CK", block, strict=True):
        if size % 4:
            return f"merged groups would have {name}={size}, which isn't a multiple of 4"
    return None


def stored_channels(channels: int, out_channels: int, groups: int) -> tuple[int, int]:
    """(C, K) to store by rule, for so many groups as the kernel sees.

    Padded channels of a grouped convolution are groups of their own. Where the usual padding isn't
    made of whole groups, none is stored: neighbours that have it are cut.
    """
    c, k = padded_channels(channels), padded_channels(out_channels)
    per_group = channels // groups, out_channels // groups
    if groups == 1:
        return c, k
    if per_group[0] == 1:
        return c, c * per_group[1]
    whole = c % per_group[0] == 0 and c // per_group[0] * per_group[1] == k
    return (c, k) if whole else (channels, out_channels)


def merged(weight: jax.Array, *, groups: int, merge: int) -> jax.Array:
    """``[K, R, S, C / groups]`` to ``[K, R, S, merge * C / groups]``."""
    if merge == 1:
        return weight
    k, *kernel, c = weight.shape
    apart = weight.reshape(groups // merge, merge, k // groups, *kernel, 1, c)
    # The block of a group is its own place among those that it is merged with.
    own = jnp.eye(merge, dtype=weight.dtype).reshape(1, merge, 1, *([1] * len(kernel)), merge, 1)
    return (apart * own).reshape(k, *kernel, merge * c)


def parted(weight: jax.Array, *, groups: int, merge: int) -> jax.Array:
    """The opposite of `merged`."""
    if merge == 1:
        return weight
    k, *kernel, c = weight.shape
    apart = weight.reshape(groups // merge, merge, k // groups, *kernel, merge, c // merge)
    parts = [apart[:, i, ..., i, :] for i in range(merge)]
    return jnp.stack(parts, axis=1).reshape(k, *kernel, c // merge)
