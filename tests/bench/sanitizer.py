"""Run every own kernel under compute-sanitizer's memcheck and racecheck.

    python tests/bench/sanitizer.py --out tests/bench/results/h100

The small convolutions of the tests, depthwise ones by three of their plans, others by that which
they are tested with, and the checker, which compares them. Writes sanitizer.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# In place of this folder, whose `layers` is another file than that of the tests.
sys.path[0] = str(ROOT / "tests")

TOOLS = ("memcheck", "racecheck")


def kernels() -> dict[str, str]:
    """What is wrong with each problem and plan; nothing, for most."""
    sys.path.append(str(ROOT / "tests" / "kernels"))
    from depthwise_cases import CASES, TRANSCENDENTAL
    from pointwise_cases import CASES as POINTWISE
    from stem_cases import CASES as STEM
    from wgmma_cases import CASES as WGMMA

    from jax_qconv import _native

    found = {}
    extension = _native.extension()
    planned = POINTWISE | STEM | (WGMMA if 90 in extension.compute_capabilities() else {})
    for case in [*CASES, *TRANSCENDENTAL, *planned]:
        problem = case.problem()
        plans = [planned[case]] if case in planned else extension.own_plans(problem)
        for plan in dict.fromkeys((plans[0], plans[len(plans) // 2], plans[-1])):
            found[f"{problem} | {plan}"] = extension.verify(problem, plan, 0)
    return found


def examine(tool: str) -> dict[str, object]:
    """What a tool finds in a process of its own, which keeps no verdicts of earlier ones."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            ["compute-sanitizer", "--tool", tool, sys.executable, __file__, "--kernels"],
            # JAX itself is to stay off the GPU.
            env=os.environ | {"JAX_QCONV_CACHE_DIR": folder, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", run.stdout + run.stderr)
    results = re.search(r"^kernels: (.*)$", run.stdout, re.MULTILINE)
    if summary is None or results is None:
        return {"error": (run.stdout + run.stderr)[-2000:]}
    kernels = json.loads(results[1])
    return {
        "summary": summary[1],
        "kernels": len(kernels),
        "wrong": {name: verdict for name, verdict in kernels.items() if verdict},
    }


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder of sanitizer.json")
    parser.add_argument("--kernels", action="store_true", help="run them, without a tool")
    args = parser.parse_args()
    if args.kernels:
        print("kernels:", json.dumps(kernels()), flush=True)
        return 0
    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = dict(zip(TOOLS, threads.map(examine, TOOLS), strict=True))
    import jax
    from bench.record import origin, write

    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "sanitizer.json", origin(jax.devices()[0]) | {"tools": found})
    print(json.dumps(found, indent=1))
    clean = all(re.match(r"0 (errors|hazards)", str(of.get("summary"))) for of in found.values())
    return 0 if clean and not any(of["wrong"] for of in found.values()) else "findings"


if __name__ == "__main__":
    sys.exit(main())
