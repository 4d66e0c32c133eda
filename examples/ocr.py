"""Text lines read by PP-OCR's recogniser in int8, held against float32.

    pip install '.[examples]'
    python examples/ocr.py    # says how to get the network (27 MB)

The network is taken out of an ONNX file, as a function in plain JAX. `quantize_model` is shown 30
rendered lines and makes an int8 network of it, which then reads 100 others. A report says what runs
in int8, what doesn't and why.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = {"matplotlib": "matplotlib", "onnx": "onnx", "PIL": "pillow", "tqdm": "tqdm"}
missing = [pip for name, pip in PACKAGES.items() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"This example needs {', '.join(missing)}:\n  pip install {' '.join(missing)}")

from _archives import Archive, parse_folder  # noqa: E402
from _ocr_float import run_float  # noqa: E402
from _ocr_graph import Graph, read  # noqa: E402
from _ocr_lines import Line, by_width, decode, equal_characters, make_lines  # noqa: E402
from tqdm import tqdm  # noqa: E402

from jax_qconv import QuantizedModel, quantize_model, report  # noqa: E402

WHEEL = Archive(
    "rapidocr-3.10.0-py3-none-any.whl",
    "rapidocr==3.10.0",
    27288134,
    "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
)
NETWORK = "rapidocr/models/PP-OCRv6_rec_small.onnx"

BATCH = 10
CALIBRATION, TEST = {"count": 30, "seed": 2}, {"count": 100, "seed": 1}
MIN_EQUAL = 97  # of the 100 lines


def read_network(folder: Path) -> Graph:
    """The network in the archive, which is read as data: neither installed nor imported."""
    with zipfile.ZipFile(folder / WHEEL.file) as archive:
        return read(archive.read(NETWORK))


def in_batches(lines: list[Line]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Batches ``[BATCH, 3, HEIGHT, width; float32]``, each with the lines that are in it."""
    for indices in by_width(lines, BATCH):
        # Repeated up to a full batch, so that there is one program for each width.
        yield indices, np.stack([lines[i].pixels for i in np.resize(indices, BATCH)])


def characters(graph: Graph) -> list[str]:
    """What the network's classes are, but for the first, which is none."""
    return [*graph.metadata["character"].split("\n"), " "]


def read_lines(
    network: Callable[..., jax.Array], params: Any, lines: list[Line], graph: Graph, what: str
) -> list[str]:
    """The text of each line, by a function of parameters and images to ``[N, T, classes]``."""
    classes = jax.jit(lambda params, images: network(params, images).argmax(-1))
    texts = {}
    for indices, images in tqdm([*in_batches(lines)], desc=what, unit="batch"):
        found = np.asarray(classes(params, images))
        texts |= {i: decode(row, characters(graph)) for i, row in zip(indices, found, strict=False)}
    return [texts[i] for i in range(len(lines))]


def read_both(
    graph: Graph, lines: list[Line], **options: Any
) -> tuple[QuantizedModel, list[str], list[str]]:
    """The int8 network, calibrated on other lines; texts of float32 and of int8."""
    function, weights = functools.partial(run_float, graph), jax.device_put(graph.weights)
    shown = [images for _, images in in_batches(make_lines(**CALIBRATION))]
    model = quantize_model(function, weights, shown, **options)
    in_float = read_lines(function, weights, lines, graph, "float32")
    return model, in_float, read_lines(model, model.params, lines, graph, "int8")


def compare(lines: list[Line], in_float: list[str], in_int8: list[str]) -> int:
    """Print the lines that differ and the totals; returns how many are equal."""
    differing = [i for i in range(len(lines)) if in_float[i] != in_int8[i]]
    for i in differing:
        print(f"\nwritten  {lines[i].text}\nfloat32  {in_float[i]}\nint8     {in_int8[i]}")
    share = np.mean(list(map(equal_characters, in_float, in_int8)))
    print(f"\n{'':24} {'float32':>8} {'int8':>8}")
    right = [
        sum(text == line.text for text, line in zip(texts, lines, strict=True))
        for texts in (in_float, in_int8)
    ]
    print(f"{'lines read as written':24} {right[0]:>8} {right[1]:>8}")
    equal = len(lines) - len(differing)
    print(f"int8 text equals float text on {equal}/{len(lines)} lines")
    print(f"characters that agree: {share:.2%}")
    return equal


def main() -> int | str:
    graph = read_network(parse_folder(__doc__.splitlines()[0], [WHEEL]))
    backend = jax.default_backend()
    print(f"backend {backend}, engine {'cudnn' if backend == 'gpu' else 'reference'}")
    lines = make_lines(**TEST)
    model, in_float, in_int8 = read_both(graph, lines, asymmetric=True)
    _, images = next(in_batches(lines))
    print(f"\n{report(model, jax.device_put(graph.weights), [images])}")
    equal = compare(lines, in_float, in_int8)
    if equal < MIN_EQUAL:
        return f"int8 reads {equal} lines as float32 does; {MIN_EQUAL} are expected."
    return 0


if __name__ == "__main__":
    sys.exit(main())
