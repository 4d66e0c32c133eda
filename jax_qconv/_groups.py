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
"""Beyond that, merged groups have at least so many."""


def merge_by_rule(channels: int, out_channels: int, groups: int) -> int:
    """How many groups to merge: a pure function, equal on every machine.

    Depthwise convolutions are left as they are: they have a kernel of their own.
    """
    if groups == 1 or channels == groups:
        return 1
    if max(channels, out_channels) <= DENSE_CHANNELS:
        return groups
    for merge in range(1, groups):
        if groups % merge == 0:
            least = min(channels, out_channels) // groups * merge
            suits = why_not(channels, out_channels, groups, merge) is None
            if least >= BLOCK_CHANNELS and suits:
                return merge
    return groups


def why_not(channels: int, out_channels: int, groups: int, merge: int) -> str | None:
    """Why so many groups can't be merged; None if they can."""
    if groups % merge:
        return f"{merge} doesn't divide the {groups} groups"
    if merge == groups or (merge == 1 and channels == groups):
        return None  # dense, or depthwise
    block = channels // groups * merge, out_channels // groups * merge
    for name, size, count in zip("CK", block, (channels, out_channels), strict=True):
        if size % 4:
            return f"merged groups would have {name}={size}, which isn't a multiple of 4"
        if padded_channels(count) % size:
            return (
                f"{count} channels are stored as {padded_channels(count)}, which merged groups of "
                f"{size} don't divide"
            )
    if padded_channels(channels) // block[0] != padded_channels(out_channels) // block[1]:
        return "input and output channels would be padded by different numbers of groups"
    return None


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
