"""The example that reads text lines: its parts, and what it promises."""

from __future__ import annotations

import functools
import os
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_runs import DATA_VARIABLE, importer, row, run

from jax_qconv import quantize_model, report

OCR_WHEEL = "rapidocr-3.10.0-py3-none-any.whl"
OCR_DOWNLOAD = "python -m pip download --no-deps -d {folder} rapidocr==3.10.0"


ocr = importer("PIL", "matplotlib", "onnx", "tqdm")


class TestOcr:
    @pytest.fixture
    def network(self):
        """The folder with the recogniser."""
        folder = os.environ.get(DATA_VARIABLE)
        if folder is None or not (Path(folder) / OCR_WHEEL).is_file():
            command = OCR_DOWNLOAD.format(folder=f"${DATA_VARIABLE}")
            pytest.skip(f"{DATA_VARIABLE} names no folder with {OCR_WHEEL}; {command}")
        return Path(folder)

    @pytest.mark.slow
    @pytest.mark.usefixtures("ocr")
    def test_int8_reads_what_float_reads(self, network):
        done = run("ocr.py", "--data", network, timeout=900)
        assert done.returncode == 0, done.stderr
        assert re.match(r"backend \w+, engine (cudnn|reference)\n", done.stdout)
        (equal,) = re.findall(r"equals float text on (\d+)/100 lines", done.stdout)
        assert int(equal) >= 97
        assert row(done.stdout, "characters that agree")[0] > 99
        assert min(row(done.stdout, "lines read as written")) >= 90
        layers = re.findall(r"^\S+ +(?:conv|linear)  ", done.stdout, re.M)
        assert len(layers) == 57 + 9
        assert re.search(r"^dot_general .*both its operands depend on data$", done.stdout, re.M)

    @pytest.mark.usefixtures("ocr")
    def test_a_missing_archive_is_named_with_the_command_to_get_it(self, tmp_path):
        folder = tmp_path / "my data"
        done = run("ocr.py", "--data", folder)
        assert done.returncode == 2
        assert done.stdout == ""
        assert f"{folder / OCR_WHEEL} is missing" in done.stderr
        assert OCR_DOWNLOAD.format(folder=shlex.quote(str(folder))) in done.stderr

    def test_an_archive_with_other_bytes_is_refused(self, ocr, tmp_path):
        (tmp_path / OCR_WHEEL).write_bytes(b"not what was examined")
        archives = ocr("_archives")
        with pytest.raises(archives.DataError, match=r"has sha256 .* delete it"):
            archives.check_archives(tmp_path, [ocr("ocr").WHEEL])

    def test_missing_packages_are_named_with_the_command_to_get_them(self):
        hide = "import importlib.util as u; u.find_spec = lambda name: None; import ocr"
        done = run("-c", hide)
        assert done.returncode == 1
        assert done.stderr.endswith("pip install matplotlib onnx pillow tqdm\n")


class TestLines:
    def test_decoding_drops_repetitions_and_blanks(self, ocr):
        decode = ocr("_ocr_lines").decode
        assert decode([0, 1, 1, 0, 1, 2, 2, 3, 0], ["a", "b", " "]) == "aab "
        assert decode(np.zeros(5, np.int32), ["a"]) == ""

    def test_agreement_counts_edits(self, ocr):
        equal = ocr("_ocr_lines").equal_characters
        assert equal("int8", "int8") == equal("", "") == 1
        assert equal("abcd", "abd") == equal("abcd", "abxd") == 0.75
        assert equal("ab", "") == 0

    def test_lines_depend_on_the_seed_only(self, ocr):
        lines = ocr("_ocr_lines")
        first, again, other = (lines.make_lines(12, seed) for seed in (1, 1, 2))
        assert [line.text for line in first] == [line.text for line in again]
        assert not {line.text for line in first} & {line.text for line in other}
        for line, same in zip(first, again, strict=True):
            np.testing.assert_array_equal(line.pixels, same.pixels)
            assert line.pixels.shape in [(3, lines.HEIGHT, width) for width in lines.WIDTHS]
            assert line.pixels.min() >= -1 and line.pixels.max() <= 1
        batches = lines.by_width(first, 5)
        assert sorted(i for batch in batches for i in batch) == list(range(12))
        assert max(map(len, batches)) <= 5


def tiny_network(onnx, weights):
    """ONNX bytes: convolution, gelu in five nodes, a gate, batch norm, a sum, softmax."""
    node = onnx.helper.make_node
    conv = {"pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}
    depthwise = conv | {"group": 8, "auto_pad": "NOTSET"}
    points = conv | {"pads": [0, 0, 0, 0]}
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], **conv),
        node("Add", ["c1", "b1"], ["a1"]),
        node("Identity", ["a1"], ["i1"]),
        node("Div", ["i1", "root"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["f"]),
        node("Mul", ["i1", "f"], ["m"]),
        node("Mul", ["m", "half"], ["g"]),
        node("ReduceMean", ["g"], ["mean"], axes=[2, 3], keepdims=1),
        node("Conv", ["mean", "w2"], ["c2"], **points),
        node("HardSigmoid", ["c2"], ["gate"], alpha=1 / 6, beta=0.5),
        node("Mul", ["g", "gate"], ["gated"]),
        node("Conv", ["gated", "w3"], ["c3"], **depthwise),
        node("BatchNormalization", ["c3", "gain", "shift", "mu", "var"], ["n"], epsilon=1e-5),
        node("Add", ["gated", "n"], ["sum"]),
        node("Softmax", ["sum"], ["y"], axis=3),
    ]
    constants = weights | {"root": np.sqrt(2), "one": 1.0, "half": 0.5}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [value("x", 1, [1, 3, 6, 10])],
        [value("y", 1, None)],
        [onnx.numpy_helper.from_array(np.float32(v), name) for name, v in constants.items()],
    )
    return onnx.helper.make_model(graph).SerializeToString()


class TestGraph:
    @pytest.fixture(autouse=True)
    def _broadcasting(self):
        """ONNX broadcasts as numpy does."""
        with jax.numpy_rank_promotion("allow"):
            yield

    @pytest.fixture
    def weights(self):
        rng = np.random.default_rng(0)
        shapes = {"w1": (8, 3, 3, 3), "b1": (1, 8, 1, 1), "w2": (8, 8, 1, 1), "w3": (8, 1, 3, 3)}
        vectors = dict.fromkeys(("gain", "shift", "mu", "var"), (8,))
        return {n: np.float32(rng.uniform(0.1, 1, s)) for n, s in (shapes | vectors).items()}

    @pytest.fixture
    def graph(self, ocr, weights):
        return ocr("_ocr_graph").read(tiny_network(ocr("onnx"), weights))

    @pytest.fixture
    def image(self):
        return np.random.default_rng(1).uniform(-1, 1, (1, 3, 6, 10)).astype(np.float32)

    def test_weights_are_arrays_and_numbers_are_numbers(self, graph, weights):
        assert graph.weights.keys() == weights.keys()
        np.testing.assert_array_equal(graph.weights["w1"], weights["w1"])
        assert graph.constants == {"root": np.float32(np.sqrt(2)), "one": 1.0, "half": 0.5}
        assert "Identity" not in {node.op for node in graph.nodes}

    def test_floats_are_those_of_the_formulas(self, ocr, graph, image, weights):
        def conv(x, weight, groups=1):
            pad = weight.shape[-1] // 2
            return jax.lax.conv_general_dilated(
                x, weight, (1, 1), ((pad, pad),) * 2, feature_group_count=groups
            )

        w = weights
        g = jax.nn.gelu(conv(image, w["w1"]) + w["b1"], approximate=False)
        gate = jnp.clip(conv(g.mean((2, 3), keepdims=True), w["w2"]) / 6 + 0.5, 0, 1)
        gain, shift, mu, var = (w[n][:, None, None] for n in ("gain", "shift", "mu", "var"))
        n = (conv(g * gate, w["w3"], 8) - mu) / np.sqrt(var + 1e-5) * gain + shift
        expected = jax.nn.softmax(g * gate + n, axis=3)
        found = ocr("_ocr_float").run_float(graph, graph.weights, image)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def test_layers_and_all_between_them_run_in_int8(self, ocr, graph, image):
        function = functools.partial(ocr("_ocr_float").run_float, graph)
        model = quantize_model(function, graph.weights, [image], progress=False)
        found = report(model, graph.weights, [image]).layers
        in_int8 = [layer.kind for layer in found if layer.out == "int8"]
        assert in_int8 == ["conv", "global average", "conv", "mul"]
        layers = [layer for layer in found if layer.kind == "conv"]
        assert [layer.name for layer in layers] == ["w1", "w2", "w3"]
        assert min(layer.sqnr_db for layer in layers) > 25
        expected = function(graph.weights, image)
        error = np.abs(model(model.params, image) - expected).max()
        assert error < 0.05 * np.abs(expected).max()

    def test_an_operation_that_is_not_known_is_named(self, ocr, graph, image):
        module = ocr("_ocr_graph")
        graph.nodes.append(module.Node("Einsum", ("y",), "z", {}))
        with pytest.raises(NotImplementedError, match="Einsum"):
            ocr("_ocr_float").run_float(graph, graph.weights, image)
