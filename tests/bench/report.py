"""Put the measured figures into README.md, between its marks, and draw them.

    python tests/bench/report.py
    python tests/bench/report.py --check

The second changes nothing, and fails where README.md doesn't say what the JSON files say.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from bench import accuracy_section, readme_section
from bench.readme_section import digest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/bench/results"
ACCURACY = "tests/bench/results/accuracy/accuracy.json"


def chosen_folder() -> pathlib.Path:
    """The folder whose figures README.md shows: of the GPU that was measured last.

    Raises:
        FileNotFoundError: if there are none.
    """
    found = {
        json.loads(path.read_text())["date"]: path.parent
        for path in sorted(RESULTS.glob("*/summary.json"))
    }
    if not found:
        raise FileNotFoundError(f"no summary.json in a folder of {RESULTS}")
    return found[max(found)]


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a section of README.md."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def replace_section(readme: str, name: str, section: str) -> str:
    """README.md with another section between the marks of a name.

    Raises:
        ValueError: unless both marks are there, once and in order.
    """
    opening, closing = marks(name)
    before, begin, rest = readme.partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end) or opening in rest or closing in before + after:
        raise ValueError(
            f"README.md must hold {opening} and {closing}, once each and in this order."
        )
    return f"{before}{begin}\n{section}\n{end}{after}"


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=pathlib.Path, nargs="?", help="of the JSON files (the last measured)"
    )
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    args = parser.parse_args()
    folder = (args.folder or chosen_folder()).resolve()
    readme = ROOT / "README.md"
    text = readme.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    accuracy = json.loads((ROOT / ACCURACY).read_text())
    speed = readme_section.section(summary, folder.relative_to(ROOT).as_posix())
    new = replace_section(text, "figures", speed)
    new = replace_section(new, "accuracy", accuracy_section.section(accuracy, ACCURACY))
    pictures = {
        folder / picture: (folder / f"{source}.json").read_bytes()
        for picture, source in readme_section.pictures(summary).items()
    }
    if args.check:
        stale = [path.name for path, source in pictures.items() if not is_of(path, source)]
        stale += ["README.md"] if new != text else []
        return f"Stale: {', '.join(stale)}. Run {parser.prog}." if stale else 0
    from bench import plots

    for path, source in pictures.items():
        plots.draw(path.name, source, path)
    readme.write_text(new)
    return 0


def is_of(picture: pathlib.Path, source: bytes) -> bool:
    """Whether a picture was drawn from a JSON file as it is now."""
    return picture.exists() and digest(source).encode() in picture.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
