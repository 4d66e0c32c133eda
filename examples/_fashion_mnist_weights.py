"""Trained weights in small files: float16 numbers, and a JSON that says how they came about."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import flax.traverse_util as trees
import jax
import numpy as np

FOLDER = Path(__file__).parent / "weights"


def weights_path(folder: Path, net: str, seed: int) -> Path:
    """Where the weights of a network are."""
    return folder / f"fashion_mnist_{net}_{seed}.npz"


def save_weights(path: Path, variables: Any, facts: dict[str, Any]) -> None:
    """Write variables as float16 numbers.

    Args:
        path: of the file; the facts go into the JSON file beside it.
        variables: a tree of dicts.
        facts: what is to be known of them; device, versions, date and commit are added.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = trees.flatten_dict(variables, sep="/")
    draft = path.with_suffix(".tmp.npz")
    np.savez_compressed(draft, **{name: np.float16(leaf) for name, leaf in flat.items()})
    os.replace(draft, path)
    path.with_suffix(".json").write_text(json.dumps(facts | _origin(), indent=1) + "\n")


def load_weights(path: Path) -> tuple[Any, dict[str, Any]]:
    """Variables in float32, and what is known of them."""
    with np.load(path) as file:
        flat = {name: np.float32(file[name]) for name in file.files}
    facts = json.loads(path.with_suffix(".json").read_text())
    return trees.unflatten_dict(flat, sep="/"), facts


def as_saved(variables: Any) -> Any:
    """What `load_weights` gives for variables that are saved."""
    return jax.tree.map(lambda leaf: np.float32(np.float16(leaf)), variables)


def _origin() -> dict[str, str]:
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": os.environ.get("JAX_QCONV_COMMIT") or _commit(),
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    git = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    return git.stdout.strip() or "unknown"
