"""What holds for every test: strict promotion, the CPU, virtual devices, caches of its own."""

import os
import pathlib
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="jax_qconv-tests-")

# Before jax and jax_qconv are imported: both read their environment then.
os.environ["JAX_QCONV_CACHE_DIR"] = _cache.name
if not pathlib.Path("/dev/nvidiactl").exists():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling, and much of it is compiled again: by other tests, by other
# workers of pytest-xdist and by processes that tests start. All of them share this cache.
if os.environ.get("JAX_PLATFORMS") == "cpu":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_cache.name}/programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

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


@pytest.fixture
def tuned_to(monkeypatch, tmp_path):
    """Makes tuning up: of the time of a problem, a function; None for no plan. Lists the tuned."""
    from jax_qconv import _plan_store, _plans, _tune
    from jax_qconv._tuning import Tuned

    target = _plan_store.Target("NVIDIA Test GPU", 90, "9.12.0")
    tuned = []

    def make_up(us_of):
        def tune_all(problems, **_):
            for problem in problems:
                tuned.append(problem)
                row = {"plan": "cudnn:4", "us": us_of(problem), "rejected": "none is exact"}
                entry = _plan_store.Entry.of_ranking(str(problem), target, [row], tried="all")
                if entry is not None:
                    _plan_store.save(entry)
                yield Tuned(problem, entry, None if entry else row["rejected"])

        monkeypatch.setattr(_tune, "tune_all", lambda *args, **kwargs: list(tune_all(*args)))
        return tuned

    monkeypatch.setattr(_plan_store, "root", lambda: tmp_path / "plans")
    monkeypatch.setattr(_plans, "local_target", lambda: target)
    return make_up
