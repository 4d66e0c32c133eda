"""Compile for an H100 without a GPU: real XLA:GPU, and real cuDNN in a process of its own."""

import importlib.util
import os
import pathlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# The plugin refuses to load on a machine without a driver unless told not to check.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def no_compilation_cache():
    """XLA can't read programs for a described GPU back."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def pytest_collection_modifyitems(items):
    """Skip what needs the CUDA plugin where it isn't installed."""
    if any(map(_installed, ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"))):
        return
    skip = pytest.mark.skip(reason="no CUDA plugin of JAX; pip install 'jax_qconv[aot]'")
    for item in items:
        if HERE in pathlib.Path(item.fspath).parents:
            item.add_marker(skip)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
