"""The notebook runs as it stands, and shows what it draws."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import jax_qconv

NOTEBOOK = Path(__file__).parents[1] / "examples/tutorial.ipynb"
PICTURES = 3


@pytest.fixture(scope="module")
def nbformat():
    for package in ("flax", "ipykernel", "matplotlib", "nbclient", "safetensors"):
        pytest.importorskip(package)
    return pytest.importorskip("nbformat")


def pictures(notebook):
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return sum("image/png" in out.get("data", {}) for out in outputs)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_with_its_results_and_pictures(nbformat):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.execution_count for cell in code(notebook)] == list(
        range(1, 1 + len(code(notebook)))
    )
    assert pictures(notebook) == PICTURES
    assert not any(out.output_type == "error" for cell in code(notebook) for out in cell.outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter's own packages
def test_it_runs(nbformat, monkeypatch):
    from nbclient import NotebookClient

    # The kernel imports the package that is tested.
    parent = str(Path(jax_qconv.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([parent, os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code(notebook):
        cell.outputs = []
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    assert pictures(notebook) == PICTURES
    text = "".join(out.get("text", "") for cell in code(notebook) for out in cell.outputs)
    assert text.count("the same: True") == 2
