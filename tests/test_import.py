"""Importing the package is free of side effects, and works without its extension."""

import json
import subprocess
import sys

import pytest

REPORT = """
import json, os, sys
import jax
from jax._src import xla_bridge
environment, config = dict(os.environ), dict(jax.config.values)
{before}
import jax_qconv
print(json.dumps({{
    "backends": xla_bridge.backends_are_initialized(),
    "config": [k for k, v in jax.config.values.items() if config[k] != v],
    "environment": dict(os.environ) == environment,
    "flax": "flax" in sys.modules,
    "extension": jax_qconv._native._ext is not None,
}}))
{after}
"""
BLOCKED = "sys.modules['jax_qconv._ext'] = None"
CALL = """
import numpy as np
x = jax_qconv.quantize(np.ones((1, 4, 4, 3), np.float32), 0.5)
packed = jax_qconv.prepack(np.ones((3, 3, 3, 2), np.float32))
print(json.dumps(np.asarray(jax_qconv.qconv(x, packed)[0, 1, 1]).tolist()))
"""


def run(before="", after=""):
    """What a fresh interpreter prints, line by line, with every warning an error."""
    script = REPORT.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", script], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("before", ["", BLOCKED], ids=["as-installed", "without-extension"])
def test_importing_starts_and_changes_nothing(before):
    (report,) = run(before)
    if before:
        assert not report["extension"]
    expected = {"backends": False, "config": [], "environment": True, "flax": False}
    assert {name: report[name] for name in expected} == expected


def test_the_cpu_needs_no_extension():
    _, out = run(f"{BLOCKED}; jax.config.update('jax_platforms', 'cpu')", CALL)
    assert out == [27.0, 27.0]
