"""What is told of a layer of an int8 network."""

from __future__ import annotations

import dataclasses

import numpy as np

BINS = 128
"""Of a histogram."""

STEPS_PER_BIN = 4
"""Half of the bins are inside of the range of int8, a quarter on each side of it."""

FIRST_STEP = -256.5
"""Where the lowest bin begins: integers reach from half a step below -128 to half above 127."""

INSIDE = slice(BINS // 4, BINS - BINS // 4)
"""The bins of numbers that int8 reaches."""


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One node of a network.

    Attributes:
        name: of the layer.
        kind: what it is, such as ``"conv"`` or ``"max pool"``.
        out: ``"int8"`` or the float dtype of its output.
        why: why it isn't int8, where one might expect it.
        macs: multiply-accumulates for the data that was shown.
        weight_scales: ``"per channel"`` or ``"per tensor"``; None without int8 weights.
        engine: what runs the kernel: ``"cudnn"``, ``"depthwise"``, ``"pointwise"``; ``"auto"``
            where that is chosen on the first call; ``"reference"`` without a GPU. See `target`.
        plan: name of the plan that the call gets, or None for the reference.
        tuned_us: time of the plan where it was tuned, in microseconds, by `tune` or for the tables
            of the package: perhaps on another GPU of its architecture, and not measured now. None
            if it wasn't tuned.
        tuned_share: of the sum of these times over all layers. What runs between the layers isn't
            timed.
        scale: of an int8 output, real units per step.
        zero_point: of an int8 output, or None.
        clipped: share of the float network's numbers that lie beyond the range of int8.
        sqnr_db: signal over the noise of quantisation, of the output against the float network's,
            errors of earlier layers included.
        mean_error: mean absolute difference to the float network.
        worst_error: largest absolute difference.
        histogram: of an int8 output, how many of the float network's numbers are in each of `BINS`
            bins of equal width, see `edges`; the outermost have all that lies beyond, too.
    """

    name: str
    kind: str
    out: str
    why: str | None = None
    macs: int = 0
    weight_scales: str | None = None
    engine: str | None = None
    plan: str | None = None
    tuned_us: float | None = None
    tuned_share: float | None = None
    scale: float | None = None
    zero_point: int | None = None
    clipped: float | None = None
    sqnr_db: float | None = None
    mean_error: float | None = None
    worst_error: float | None = None
    histogram: tuple[int, ...] | None = None

    @property
    def edges(self) -> np.ndarray:
        """``[BINS + 1; float64]``: between the bins of the histogram, in real units."""
        return self._real(FIRST_STEP + STEPS_PER_BIN * np.arange(BINS + 1))

    @property
    def clip_points(self) -> tuple[float, float]:
        """The least and the largest number that the int8 output can stand for."""
        low, high = self._real(np.array([-128, 127]))
        return float(low), float(high)

    def _real(self, steps: np.ndarray) -> np.ndarray:
        if self.scale is None:
            raise ValueError(f"the output of {self.name} is {self.out}: it has no scale.")
        return (steps - (self.zero_point or 0)) * self.scale
