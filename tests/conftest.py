"""What holds for every test: strict promotion, the CPU, virtual devices, a cache of its own."""

import os
import pathlib
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="jax_qconv-tests-")

# Before jax and jax_qconv are imported: both read their environment then.
os.environ["JAX_QCONV_CACHE_DIR"] = _cache.name
if not pathlib.Path("/dev/nvidiactl").exists():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)

hypothesis.settings.register_profile(
    "jax_qconv", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("jax_qconv")


def pytest_unconfigure() -> None:
    """Remove the cache folder."""
    _cache.cleanup()


@pytest.fixture(autouse=True)
def default_device():
    """Run on the CPU, also where there is a GPU; GPU tests override this fixture."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield
