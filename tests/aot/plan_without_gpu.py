"""Print the plans that cuDNN offers for problems on a described GPU, as JSON.

A process of its own: it runs with a stub of the driver on its library path.
Arguments: the file of device properties, then problems.
"""

import json
import pathlib
import sys

from jax_qconv import _native


def main(properties: str, *problems: str) -> None:
    """Suggest plans for each problem and build the first one."""
    device, extension = pathlib.Path(properties).read_text(), _native.extension()
    suggestions = {p: extension.suggest_without_device(p, device) for p in problems}
    for problem, (first, *_) in suggestions.items():
        assert extension.build_without_device(problem, device, first)
    print(json.dumps(suggestions))


if __name__ == "__main__":
    main(*sys.argv[1:])
