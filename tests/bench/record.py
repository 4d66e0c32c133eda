"""What a results file says of itself (device, clocks, versions, commit, date), and its writing."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import subprocess
from typing import Any

import jax

import jax_qconv

SAME_RUN = ("device", "driver", "jax", "jaxlib", "cudnn", "commit")
"""What must be equal for figures to be added to those of a file."""

CLOCKS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "max_sm_mhz": "clocks.max.sm",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
}
"""What is asked of nvidia-smi, by the names it gets in the files."""


def origin(device: jax.Device) -> dict[str, Any]:
    """What the figures were measured on, with what and when."""
    info = jax_qconv.info()
    return {
        "device": device.device_kind,
        "driver": info.driver,
        "jax": info.jax,
        "jaxlib": info.jaxlib,
        "cudnn": info.cudnn,
        "jax_qconv": info.package,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def commit() -> str:
    """JAX_QCONV_COMMIT, for machines that have no checkout, or this checkout's commit."""
    if "JAX_QCONV_COMMIT" in os.environ:
        return os.environ["JAX_QCONV_COMMIT"]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = pathlib.Path(__file__).parent
    git = subprocess.run(command, cwd=here, capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def clocks() -> dict[str, Any]:
    """The first GPU's clocks now, its temperature and power; or the error why they are unknown."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS.values())}", f"--id={first}"]
    try:
        found = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return dict(zip(CLOCKS, map(float, found.stdout.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def earlier(path: pathlib.Path, head: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run of the same commit, versions and device left in a file, if it did."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    # A checkout with changes may have others each time.
    known = head["commit"] != "unknown" and not head["commit"].endswith("-dirty")
    return found if known and all(found.get(name) == head[name] for name in SAME_RUN) else None


def error_text(error: Exception) -> str:
    """Why a system has no figures."""
    return f"{type(error).__name__}: {error}"[:1000]


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Atomically: a reader sees the old file or the new one, and so does whoever is cut off."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(rounded(results), indent=1) + "\n")
    os.replace(draft, path)


def rounded(value: Any) -> Any:
    """Figures as they are read: floats to four places."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
