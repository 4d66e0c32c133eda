"""What tests of the examples share: how to run one, and to read what it prints."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA_VARIABLE = "JAX_QCONV_EXAMPLE_DATA"
"""Names the folder of the packages that the examples read as data."""


def importer(*packages):
    """A fixture that imports a module of the examples by its name, where they have their packages.

    Args:
        packages: without one of these, tests are skipped.
    """

    @pytest.fixture
    def load(monkeypatch):
        for package in packages:
            pytest.importorskip(package)
        monkeypatch.syspath_prepend(EXAMPLES)
        return importlib.import_module

    return load


def run(*args, timeout=300):
    """The finished process of a Python command line, in the folder of the examples."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=timeout)


def row(output, name):
    """The numbers in the one line of the output that starts with ``name``; of n/20 the n."""
    (line,) = re.findall(rf"^{re.escape(name)}:? +(\d.*)$", output, re.MULTILINE)
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![/\d])[\d,.]+", line)]
