"""The compiled extension: the only place that imports it, and says why it can't be used."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import sys
from typing import Any

import jax
import platformdirs

try:
    import jax_qconv._ext as _ext  # pyright: ignore[reportMissingImports]
except ImportError as error:
    # Kept to be shown where the extension is asked for.
    _ext = None
    import_error: ImportError | None = error
else:
    import_error = None

TARGET = "jax_qconv.conv"
"""Name of the FFI custom call."""

SCHEMA = 1
"""Version of the call's attributes. Compiled programs outlive this package in JAX's caches."""


class EngineUnavailableError(RuntimeError):
    """An engine was asked for by name, or needed, and can't run here; the text says why."""


@functools.cache
def running_ffi_api() -> tuple[int, int] | None:
    """(major, minor) of the XLA FFI of the installed jaxlib, from its headers if they are there."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        text = header.read_text()
    except OSError:
        return None
    found = re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", text)
    parts = {part: int(number) for part, number in found}
    return (parts["MAJOR"], parts["MINOR"]) if len(parts) == 2 else None


@functools.cache
def extension_problem() -> str | None:
    """Why the extension can't serve the running JAX, with the remedy; None if it can."""
    if _ext is None:
        return (
            f"the extension jax_qconv._ext could not be imported ({import_error}); reinstall with "
            "`pip install --force-reinstall --no-deps jax_qconv`, or from a checkout with "
            "`pip install .`."
        )
    running = running_ffi_api()
    if running is None:
        return "the version of XLA's FFI can't be read from jaxlib's headers; reinstall jaxlib."
    built = _ext.versions()["ffi_api"]
    if built[0] != running[0] or built[1] > running[1]:
        # Registering would take the whole backend down when it starts.
        return (
            f"the extension was built for XLA FFI {built[0]}.{built[1]}, newer than the "
            f"{running[0]}.{running[1]} of the installed jaxlib; `pip install -U jax jaxlib`."
        )
    return None


def extension() -> Any:
    """The extension module.

    Raises:
        EngineUnavailableError: with the reason and the remedy, if it can't be used.
    """
    problem = extension_problem()
    if problem is not None:
        raise EngineUnavailableError(f"cuDNN engine: {problem}") from import_error
    return _ext


@functools.cache
def cache_dir() -> pathlib.Path:
    """Where plans, verdicts and kernels are kept: $JAX_QCONV_CACHE_DIR or the user's cache.

    Read once, at import: both sides of the extension must use the same folder.
    """
    configured = os.environ.get("JAX_QCONV_CACHE_DIR")
    return pathlib.Path(configured or platformdirs.user_cache_dir("jax_qconv")).absolute()


def _library_dirs() -> list[str]:
    """Folders in which NVIDIA's wheels keep their libraries, in the order of sys.path."""
    roots = dict.fromkeys(pathlib.Path(p) / "nvidia" for p in sys.path if p)
    return [str(d) for root in roots if root.is_dir() for d in sorted(root.glob("*/lib"))]


@functools.cache
def register() -> None:
    """Tell JAX about the custom call, where it can be used; starts no backend."""
    if extension_problem() is not None:
        return
    ext = extension()
    ext.configure(cache_dir=str(cache_dir()), library_dirs=_library_dirs())
    jax.ffi.register_ffi_type("jax_qconv.ConvState", ext.state_type(), platform="CUDA")
    jax.ffi.register_ffi_target(TARGET, ext.handlers(), platform="CUDA")
