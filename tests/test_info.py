"""What `info` tells, in Python and on the command line, whatever is missing."""

import importlib.metadata
import subprocess
import sys
import types

import jax
import jaxlib
import pytest

import jax_qconv
from jax_qconv import __main__, _info, _native

GPU = types.SimpleNamespace(platform="gpu", id=0, device_kind="Test GPU")
FOUND = {"cudnn": (9, 12, 0), "cudnn_error": None, "driver": (13, 0), "driver_error": None}
FOUND |= {"nvrtc_error": None, "loaded_kernels": False}


@pytest.fixture
def installation(monkeypatch):
    """Pretend: an extension with its libraries, or the error of its import; and devices."""

    def pretend(*, ffi_api=None, libraries=FOUND, error=None, devices=(GPU,), capability=90):
        ext = types.SimpleNamespace(
            versions=lambda: {"ffi_api": ffi_api or _native.running_ffi_api(), "cudnn": (9, 12, 0)},
            libraries=lambda: libraries,
            compute_capabilities=lambda: [capability],
        )
        monkeypatch.setattr(_native, "_ext", None if error else ext)
        monkeypatch.setattr(_native, "import_error", error)
        monkeypatch.setattr(_info, "_devices", lambda: (list(devices), "no driver"))
        _native.extension_problem.cache_clear()

    yield pretend
    _native.extension_problem.cache_clear()


def engine_row(name):
    """The line of an engine in what `info` prints."""
    (row,) = (r for r in str(jax_qconv.info()).splitlines() if r.startswith(f"engine {name} "))
    return row


def test_info_of_this_machine():
    info = jax_qconv.info()
    assert info.package == importlib.metadata.version("jax_qconv") == jax_qconv.__version__
    assert (info.jax, info.jaxlib) == (jax.__version__, jaxlib.__version__)
    assert info.ffi_running == ".".join(map(str, _native.running_ffi_api()))
    assert list(info.engines) == ["cudnn", "depthwise", "pointwise", "stem", "wgmma", "reference"]
    assert info.engines["reference"] == "usable"
    assert (info.ffi_built is None) == (info.import_error is not None)
    devices = [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices("cpu")]
    assert set(devices) <= set(info.devices)
    rows = str(info).splitlines()
    for name in ("jax_qconv", "jax, jaxlib", "XLA FFI", "cuDNN", "driver", "devices"):
        assert sum(row.startswith(f"{name} ") for row in rows) == 1


def test_all_is_well(installation):
    installation()
    info = jax_qconv.info()
    assert set(info.engines.values()) == {"usable"}
    assert (info.cudnn, info.cudnn_headers, info.driver) == ("9.12.0", "9.12.0", "13.0")
    assert info.ffi_built == info.ffi_running
    assert info.devices == ("gpu:0 Test GPU",)
    assert info.import_error is None
    assert "CUDA 13.0" in str(info) and "Test GPU" in str(info)


def test_the_engine_of_one_generation_is_for_no_other(installation):
    installation(capability=89)
    engines = jax_qconv.info().engines
    assert engines["wgmma"] == "for GPUs of sm_90 only" and engines["stem"] == "usable"


def test_an_older_extension_is_usable(installation):
    major, minor = _native.running_ffi_api()
    installation(ffi_api=(major, minor - 1))
    assert jax_qconv.info().engines["cudnn"] == "usable"


@pytest.mark.parametrize("step", [(0, 1), (1, 0)], ids=["minor", "major"])
def test_an_extension_for_newer_headers_is_not_used(installation, step):
    running = _native.running_ffi_api()
    built = tuple(a + b for a, b in zip(running, step, strict=True))
    installation(ffi_api=built)
    row = engine_row("cudnn")
    assert f"built for XLA FFI {built[0]}.{built[1]}" in row
    assert f"{running[0]}.{running[1]} of the installed jaxlib" in row
    assert "pip install -U jax jaxlib" in row
    with pytest.raises(jax_qconv.EngineUnavailableError, match="pip install -U jax jaxlib"):
        _native.extension()


def test_a_failed_import_is_shown_in_full(installation):
    try:
        raise ImportError("libfoo.so.7: cannot open shared object file")
    except ImportError as error:
        installation(error=error)
    info = jax_qconv.info()
    assert (info.ffi_built, info.cudnn, info.driver) == (None, None, None)
    assert "libfoo.so.7: cannot open shared object file" in info.engines["cudnn"]
    assert "pip install" in info.engines["cudnn"]
    assert info.import_error.startswith("Traceback")
    assert str(info).endswith(info.import_error)
    with pytest.raises(jax_qconv.EngineUnavailableError, match="libfoo") as caught:
        _native.extension()
    assert caught.value.__cause__ is _native.import_error


@pytest.mark.parametrize("name", ["cudnn", "driver"])
def test_a_missing_library_is_named(installation, name):
    reason = f"lib{name}.so was not found; install it"
    installation(libraries={**FOUND, name: None, f"{name}_error": reason})
    assert getattr(jax_qconv.info(), name) is None
    assert reason in engine_row("cudnn")
    assert "not found" in str(jax_qconv.info())


def test_own_kernels_need_a_compiler_but_no_cudnn(installation):
    installation(libraries={**FOUND, "cudnn": None, "cudnn_error": "no cuDNN"})
    assert jax_qconv.info().engines["depthwise"] == "usable"
    installation(libraries={**FOUND, "nvrtc_error": "no NVRTC"})
    assert "no NVRTC" in engine_row("cudnn") and "no NVRTC" in engine_row("depthwise")


def test_loaded_kernels_do_without_a_compiler_and_the_limit_is_told(installation):
    installation(libraries={**FOUND, "nvrtc_error": "no NVRTC", "loaded_kernels": True})
    for engine in ("cudnn", "depthwise"):
        state = jax_qconv.info().engines[engine]
        assert state == "usable with the kernels that were loaded only (no NVRTC)"
    installation(libraries={**FOUND, "loaded_kernels": True})
    assert jax_qconv.info().engines["depthwise"] == "usable"


def test_without_a_gpu_the_way_to_one_is_told(installation):
    installation(devices=jax.devices("cpu"))
    row = engine_row("cudnn")
    assert "JAX has no CUDA device" in row
    assert "pip install 'jax_qconv[cuda13]'" in row


def run(*arguments):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_prints_info():
    printed = run("-m", "jax_qconv", "info").splitlines()
    rows = dict(row.split("  ", 1) for row in printed if "  " in row)
    assert rows["jax_qconv"].strip() == jax_qconv.__version__
    assert rows["engine reference"].strip() == "usable"


def test_the_command_shows_why_the_extension_is_missing():
    script = "import sys; sys.modules['jax_qconv._ext'] = None\n"
    script += "from jax_qconv.__main__ import main; main(['info'])"
    printed = run("-c", script)
    assert "import of jax_qconv._ext halted" in printed
    assert "Traceback" in printed
    assert "engine reference" in printed


@pytest.mark.parametrize("arguments", [[], ["inform"], ["info", "more"]], ids=str)
def test_the_command_line_is_checked(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        __main__.main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m jax_qconv" in capsys.readouterr().err
