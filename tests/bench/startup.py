"""Time from the start of a process to its first result, on ResNet-50's 53 convolutions at batch 1.

    python tests/bench/startup.py --out tests/bench/results/h200

Cold: nothing is kept from earlier. Warm: with the plans and verdicts that the cold run left. And
warm with JAX's own cache of compiled programs too. Writes startup.json.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

FIRST_RESULT = """
import jax
from bench import resnet50_jax
run, params = resnet50_jax.int8_net()
jax.block_until_ready(jax.jit(run)(params, resnet50_jax.images(1)))
"""


def seconds(environment: dict[str, str]) -> float:
    """Of a process that makes one forward pass."""
    path = os.pathsep.join(filter(None, sys.path))
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", FIRST_RESULT],
        env=os.environ | environment | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        check=True,
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of startup.json")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        plans = {"JAX_QCONV_CACHE_DIR": f"{folder}/plans"}
        programs = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        found = {"cold": seconds(plans), "warm": seconds(plans)}
        seconds(plans | programs)
        found["warm_with_programs"] = seconds(plans | programs)
    # Only now: a process that holds the GPU's memory is in the way of the others.
    import jax
    from bench.record import origin, write

    results = origin(jax.devices()[0]) | {"seconds": found, "method": " ".join(__doc__.split())}
    out.mkdir(parents=True, exist_ok=True)
    write(out / "startup.json", results)
    print(found)


if __name__ == "__main__":
    main()
