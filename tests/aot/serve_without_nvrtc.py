"""Build and verify the plans that a depthwise call tries first, on a server that has no NVRTC.

A process of its own: it runs with a stub of the driver on its library path. Prints, as JSON, what
was wrong with each plan when it was built and when it was verified, and what was said of NVRTC.
Arguments: the problem, then files of kernels to load.
"""

import json
import sys

import jax_qconv
from jax_qconv import _native


def main(problem: str, *files: str) -> None:
    """Load, build, verify."""
    extension = _native.extension()
    # Without the folders of NVIDIA's wheels NVRTC isn't found.
    extension.configure(cache_dir=str(_native.cache_dir()), library_dirs=[])
    for file in files:
        jax_qconv.load_kernels(file)
    tuner = extension.Tuner(problem, 0)
    plans = tuner.suggestions()
    built = tuner.build(plans)
    print(
        json.dumps(
            {
                "nvrtc": extension.libraries()["nvrtc_error"],
                "loaded": extension.libraries()["loaded_kernels"],
                "built": dict(zip(plans, built, strict=True)),
                "verified": tuner.verify(plans) if not any(built) else None,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
