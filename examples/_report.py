"""What the ImageNet examples print."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import numpy as np
from _leave_one_out import Comparison

from jax_qconv import PackedConv

MIN_AGREEMENT = 18  # of the 20 top-1 classes


def print_network(
    packs: dict[str, PackedConv], plans: Counter[str], left_in_float: list[str]
) -> None:
    """What ran in int8, where, and what did not."""
    # A plan's name starts with that of its engine; the reference has none.
    engines = sorted({plan.split(":")[0] for plan in plans}) or ["reference"]
    print(f"backend {jax.default_backend()}, engine {' and '.join(engines)}")
    for plan, count in plans.most_common():
        print(f"  {count} by {plan}")
    print(f"in int8: {len(packs)} convolutions")
    for kind, count in Counter(map(_kind, packs.values())).most_common():
        print(f"  {count} {kind}")
    print("left in float32:", *left_in_float, sep="\n  ")


def _kind(packed: PackedConv) -> str:
    kernel = "x".join(map(str, packed.kernel_size))
    stride = "" if set(packed.strides) == {1} else f", strides {packed.strides[0]}"
    return f"{'depthwise ' if packed.groups > 1 else ''}{kernel}{stride}"


def print_bytes(weights: Any, packs: Any, left_in_float: Any = ()) -> None:
    """The size of all weights, and of the two parts that they are replaced by."""
    sizes = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        for tree in (weights, packs, left_in_float)
    )
    print("weights: {:,} bytes in float32; {:,} in int8, {:,} left in float32".format(*sizes))


def signal_to_noise(exact: np.ndarray, approximate: np.ndarray) -> np.ndarray:
    """Decibels of each row, its mean left out: a shift of all logits changes no probability."""
    return 10 * np.log10(np.var(exact, axis=-1) / np.var(approximate - exact, axis=-1))


def print_comparison(labels: np.ndarray, results: Comparison) -> int | str:
    """Print a row per photo and the totals.

    Args:
        labels: ``[photos; int]``.
        results: of both networks.

    Returns:
        0, or what is wrong: the exit status of the program.
    """
    logits = results.in_float, results.in_int8
    exact, quantised = (np.argsort(-rows, axis=-1)[:, :5] for rows in logits)
    agree = exact[:, 0] == quantised[:, 0]
    decibels = signal_to_noise(*logits)

    row = "{:>5} {:>6} {:>9} {:>6} {:>6} {:>14} {:>6} {:>9}".format
    print(row("photo", "label", "float32", "int8", "agree", "top-5: float32", "int8", "SQNR dB"))
    for i, label in enumerate(labels):
        facts = agree[i], label in exact[i], label in quantised[i]
        yes_no = ["yes" if fact else "no" for fact in facts]
        print(row(i, label, exact[i, 0], quantised[i, 0], *yes_no, f"{decibels[i]:.1f}"))

    total = "{:14} {:>10} {:>10}".format
    print("\n" + total("", "float32", "int8"))
    for name, depth in {"top-1": 1, "top-5": 5}.items():
        hits = [(top5[:, :depth] == labels[:, None]).sum() for top5 in (exact, quantised)]
        print(total(name, *(f"{n}/{len(labels)}" for n in hits)))
    # A median: the first photo waits for the compilation.
    times = results.float_seconds, results.int8_seconds
    print(total("ms per photo", *(f"{np.median(seconds) * 1e3:.1f}" for seconds in times)))
    print(f"top-1 classes agree on {agree.sum()}/{len(labels)}")
    print(f"mean logit SQNR: {decibels.mean():.1f} dB")
    if agree.sum() < MIN_AGREEMENT:
        return f"int8 agrees with float32 on {agree.sum()} photos only, not {MIN_AGREEMENT}."
    return 0
