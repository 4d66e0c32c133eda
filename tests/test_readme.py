"""The README's Python runs, and what it and CONTRIBUTING.md name exists."""

import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qconv

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODEL, LAYER, *OTHERS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(*blocks):
    """The variables after running the blocks one after the other."""
    variables = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), variables)
    return variables


@pytest.fixture(scope="module")
def layer():
    return run(LAYER)


def test_the_first_example_hands_over_a_model_in_few_lines():
    pytest.importorskip("flax")
    found = run(MODEL)
    wanted = found["model"].apply(found["params"], found["images"])
    assert jnp.abs(found["logits"] - wanted).max() < 0.05 * jnp.abs(wanted).max()
    assert len(found["int8"].params["layers"]) == 3
    assert len(MODEL.splitlines()) < 15


def test_the_example_of_a_layer_convolves(layer):
    convolution = jax.lax.conv_general_dilated(
        layer["x"], layer["weight"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = np.maximum(convolution, 0)
    error = jax_qconv.dequantize(layer["y"]) - expected
    assert jnp.linalg.norm(error) < 0.02 * jnp.linalg.norm(expected)


def test_the_example_of_a_layer_prints_what_its_comment_says(layer):
    (comment,) = re.findall(r"# (QTensor.*)", LAYER)
    assert repr(layer["y"]) == comment


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.splitlines()[0])
def test_every_other_block_runs_after_that_of_a_layer(block):
    if "flax" in block:
        pytest.importorskip("flax")
    if "save(" in block:
        pytest.importorskip("safetensors")
    if '"cuda"' in block:
        pytest.importorskip("jax_qconv._ext")
    if "serialize" in block:
        pytest.importorskip("flatbuffers")
    run(LAYER, block)


def test_shell_commands_name_extras_and_files_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    named = {name for names in re.findall(r"'\.\[(.*?)\]'", commands) for name in names.split(",")}
    assert named and named <= project["optional-dependencies"].keys()
    files = re.findall(r"[\w/]+\.py\b", commands)
    assert files and all((ROOT / file).is_file() for file in files)


def test_relative_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_contributing_names_the_job_of_every_source():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    sources = [*ROOT.glob("jax_qconv/[!_]*.py"), *ROOT.glob("jax_qconv/_[!_]*.py")]
    stems = {path.stem for path in [*sources, *ROOT.glob("cuda/*.cc")]}
    assert len(stems) > 20
    assert stems <= set(re.findall(r"\w+", text))


def test_every_public_function_is_in_the_readme():
    public = {name for name in jax_qconv.__all__ if name[0].islower()}
    assert public <= set(re.findall(r"\w+", README))
