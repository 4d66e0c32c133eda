"""Weights of networks in the files of ncnn: text that lists the layers, and their numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAGIC = "7767517"  # first line of the text
HALF = 0x01306B47  # in front of weights that are float16


class Layer(NamedTuple):
    """One layer.

    Attributes:
        kind: such as ``"Convolution"``.
        name: its own.
        arrays: ``"kernel"`` ``[R, S, C, K; float32]`` and ``"bias"`` ``[K]`` of a convolution,
            ``"slope"`` ``[C]`` of a PReLU, none of others.
    """

    kind: str
    name: str
    arrays: dict[str, np.ndarray]


def read_layers(param: str, data: bytes) -> list[Layer]:
    """All layers, in order.

    Args:
        param: the text.
        data: the numbers.

    Raises:
        ValueError: if these aren't such files, or of layers that aren't known.
    """
    magic, _counts, *lines = param.splitlines()
    if magic != MAGIC:
        raise ValueError(f"the text of an ncnn network begins with {MAGIC}, not {magic!r}.")
    numbers = _Numbers(data)
    layers = []
    for line in filter(None, map(str.strip, lines)):
        kind, name, inputs, outputs, *rest = line.split()
        settings = dict(item.split("=") for item in rest[int(inputs) + int(outputs) :])
        layers.append(Layer(kind, name, _arrays(kind, settings, numbers)))
    if numbers.left:
        raise ValueError(f"{len(numbers.left)} bytes are left after the last layer.")
    return layers


def _arrays(kind: str, settings: dict[str, str], numbers: _Numbers) -> dict[str, np.ndarray]:
    """What a layer has; settings are numbered: 0 is outputs, 1 the kernel's size, 6 all weights."""
    if kind == "PReLU":
        return {"slope": numbers.take(int(settings["0"]), "<f4")}
    if kind != "Convolution":
        return {}
    k, size, count = (int(settings[key]) for key in "016")
    if settings.get("5") != "1":
        raise ValueError("a convolution without a bias isn't known.")
    if numbers.take(1, "<u4")[0] != HALF:
        raise ValueError("weights that aren't float16 aren't known.")
    kernel = numbers.take(count, "<f2").reshape(k, -1, size, size).transpose(2, 3, 1, 0)
    return {"kernel": kernel.astype(np.float32), "bias": numbers.take(k, "<f4")}


class _Numbers:
    """Arrays one after the other."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def take(self, count: int, dtype: str) -> np.ndarray:
        """So many numbers; they take a multiple of four bytes."""
        size = -(-count * np.dtype(dtype).itemsize // 4) * 4
        if size > len(self.left):
            raise ValueError(f"the data ends {size - len(self.left)} bytes too early.")
        found, self.left = self.left[:size], self.left[size:]
        return np.frombuffer(found, dtype, count)
