"""Imports and includes go one way, files stay small, and what is public is documented."""

import ast
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
import sys

import pytest

import jax_qconv

PACKAGE = pathlib.Path(jax_qconv.__file__).parent
CUDA = pathlib.Path(__file__).parents[1] / "cuda"

# Each module may import only modules before it.
MODULES = [
    "_activation",
    "_spec",  # how shapes and places are said: no arrays
    "_problem",
    "_arrays",
    "_quantize",
    "_range",
    "_extremes",
    "_histogram",
    "_thresholds",
    "_observers",
    "_weight_clipping",
    "_weights",
    "_fold",
    "_binding",
    "_space_to_depth",
    "_subpixel",
    "_groups",
    "_zero_point",
    "_packed_conv",
    "_nodes",
    "_trees",
    "_like",
    "_pack",
    "_reference",
    "_window",  # where windows lie: no arrays
    "_steps",
    "_table",
    "_elementwise",
    "_pool",
    "_rearrange",
    "_resize",
    "_native",  # the only one that sees the extension
    "_plan_model",
    "_plan_store",
    "_race",
    "_tuning_worker",
    "_tuning",
    "_plans",
    "_primitive",
    "_resolve",
    "_conv",
    "_linear",
    "_collect",
    "_kernels",
    "_io",
    "_graph",
    "_layer_info",
    "_values",
    "_operands",
    "_regions",
    "_placement",
    "_conv_node",
    "_moments",
    "_op_nodes",
    "_move_nodes",
    "_layers",
    "_operations",
    "_fuse",
    "_storage",
    "_network",
    "_equalise",
    "_rules",
    "_batches",
    "_calibrate",
    "_packing",
    "_quantize_model",
    "_columns",
    "_noise",
    "_layer_plan",
    "_layer_report",
    "_report_plot",
    "_report",
    "_sensitivity",
    "_mixed_precision",
    "_networks",
    "_tune",
    "_choices",
    "_paddings",
    "_merges",
    "_flax",
    "linen",
    "nnx",
    "_info",
    "__init__",
    "_cli",
    "__main__",
]

# Each file may include only headers before it, and its own.
SOURCES = [
    "settings",
    "status",
    "dynamic_library",
    "cuda_driver",
    "disk_cache",
    "problem",
    "plan_name",
    "cudnn_library",
    "cudnn_graph",
    "kernel",
    "engine",
    "cudnn_engine",
    "kernel_engine",
    "kernel_literal",
    "tile_plans",
    "depthwise",
    "pointwise",
    "stem",
    "wgmma",
    "engines",
    "checker",
    "plan",
    "plan_registry",
    "tuner",
    "search",
    "conv_ffi",
    "module",
]

REQUIRED = {"jax", "jaxlib", "numpy", "platformdirs"}
MAX_LINES = 400


@functools.cache
def imports(module):
    """Names of what a module imports: ``jax_qconv._spec`` for every way to write it."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: imports are absolute"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                is_file = (PACKAGE.parent / f"{below.replace('.', '/')}.py").exists()
                names.add(below if is_file else node.module)
    return names


def own(names):
    """The modules of this package among ``names``."""
    names = {f"{n}.__init__" if n == "jax_qconv" else n for n in names}
    return {n.removeprefix("jax_qconv.") for n in names if n.startswith("jax_qconv.")}


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    before = set(MODULES[: MODULES.index(module)])
    if module == "_native":
        before.add("_ext")
    assert own(imports(module)) - before == set()


@pytest.mark.parametrize("module", MODULES)
def test_the_core_needs_few_packages(module):
    roots = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names
    allowed = REQUIRED | {"jax_qconv"}
    if module in ("_flax", "linen", "nnx"):
        allowed.add("flax")
    if module == "_io":
        allowed.add("safetensors")
    if module == "_report_plot":
        allowed.add("matplotlib")
    assert roots - allowed == set()


@pytest.mark.parametrize("module", MODULES)
def test_only_public_jax_is_used(module):
    assert not re.search(r"\bjax\._src\b", (PACKAGE / f"{module}.py").read_text())


def test_every_source_has_its_place():
    stems = {path.stem for pattern in ("*.h", "*.cc") for path in CUDA.glob(pattern)}
    assert stems == set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_includes_go_one_way(source):
    before = set(SOURCES[: SOURCES.index(source) + 1])
    for path in CUDA.glob(f"{source}.*"):
        included = re.findall(r'^#include "(\w+)\.h"', path.read_text(), re.MULTILINE)
        # Others are headers of kernels, generated ones and XLA's.
        assert set(included) & set(SOURCES) <= before, path.name


@pytest.mark.parametrize("folder", [PACKAGE, CUDA], ids=lambda path: path.name)
def test_files_stay_small(folder):
    files = [p for p in folder.rglob("*") if p.suffix in (".py", ".h", ".cc", ".cu")]
    assert len(files) > 5
    lines = {str(p.relative_to(folder)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


def public_objects():
    """Name and object of all that users see: exported names, Flax modules, their methods."""
    found = {f"jax_qconv.{name}": getattr(jax_qconv, name) for name in jax_qconv.__all__}
    for name in ("linen", "nnx"):
        if importlib.util.find_spec("flax"):
            module = importlib.import_module(f"jax_qconv.{name}")
            found |= {
                f"{module.__name__}.{key}": value
                for key, value in vars(module).items()
                if not key.startswith("_") and getattr(value, "__module__", "") == module.__name__
            }
    for path, value in list(found.items()):
        if inspect.isclass(value):
            found |= {
                f"{path}.{key}": getattr(member, "__func__", member)
                for key, member in vars(value).items()
                if not key.startswith("_")
                and (inspect.isroutine(member) or isinstance(member, property))
            }
    return found


PUBLIC = public_objects()
FUNCTIONS = [name for name, value in PUBLIC.items() if inspect.isfunction(value)]


def section(doc, title):
    """The lines of a section of a Google-style docstring."""
    match = re.search(
        rf"^{title}:\n(.*?)(?=^\w+:$|\Z)", inspect.cleandoc(doc), re.DOTALL | re.MULTILINE
    )
    return match[1] if match else ""


def undocumented(names, text):
    """The names that begin no entry of a section; an entry may be of several."""
    return [n for n in names if not re.search(rf"^    (\w+, )*{n}(, \w+)*:", text, re.MULTILINE)]


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_documented(name):
    value = PUBLIC[name]
    doc = value.__doc__ or ""
    # Dataclasses and tuples without a docstring are given their signature for one.
    written = not doc.startswith(f"{name.split('.')[-1]}(")
    assert doc and written


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n.count(".") == 1 or n.endswith(".bind")])
def test_arguments_and_results_are_documented(name):
    function = PUBLIC[name]
    arguments = [p for p in inspect.signature(function).parameters if p != "self"]
    assert undocumented(arguments, section(function.__doc__, "Args")) == []
    assert section(function.__doc__, "Returns")


DATACLASSES = [name for name, value in PUBLIC.items() if dataclasses.is_dataclass(value)]


@pytest.mark.parametrize("name", DATACLASSES)
def test_fields_are_documented(name):
    of_flax = {"parent", "name"}
    fields = {f.name for f in dataclasses.fields(PUBLIC[name])} - of_flax
    assert undocumented(fields, section(PUBLIC[name].__doc__, "Attributes")) == []
