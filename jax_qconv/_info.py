"""What is installed, what runs, and why an engine doesn't: `info`."""

from __future__ import annotations

import dataclasses
import traceback
from importlib import metadata
from typing import Any

import jax

from jax_qconv import _native


@dataclasses.dataclass(frozen=True)
class Info:
    """The state of this installation; its text form is what `python -m jax_qconv info` prints.

    Attributes:
        package: version of jax_qconv.
        jax: version of jax.
        jaxlib: version of jaxlib.
        ffi_built: XLA FFI version the extension was built for, or None without it.
        ffi_running: XLA FFI version of the installed jaxlib, or None if it can't be read.
        cudnn_headers: cuDNN version of the headers in the build, or None.
        cudnn: version of the libcudnn found, or None.
        driver: CUDA version of the NVIDIA driver, or None.
        devices: every device of every JAX backend, in words.
        engines: for each engine ``"usable"``, with what limits it, or the reason why not, with the
            remedy.
        import_error: traceback of the failed import of the extension, or None.
    """

    package: str
    jax: str
    jaxlib: str
    ffi_built: str | None
    ffi_running: str | None
    cudnn_headers: str | None
    cudnn: str | None
    driver: str | None
    devices: tuple[str, ...]
    engines: dict[str, str]
    import_error: str | None

    def __str__(self) -> str:
        rows = {
            "jax_qconv": self.package,
            "jax, jaxlib": f"{self.jax}, {self.jaxlib}",
            "XLA FFI": f"built for {self.ffi_built or 'none'}, running {self.ffi_running or '?'}",
            "cuDNN": f"{self.cudnn or 'not found'} (headers {self.cudnn_headers or 'unknown'})",
            "driver": f"CUDA {self.driver}" if self.driver else "not found",
            "devices": ", ".join(self.devices) or "none",
        }
        rows |= {f"engine {name}": state for name, state in self.engines.items()}
        width = max(map(len, rows))
        lines = [f"{name:{width}}  {value}" for name, value in rows.items()]
        return "\n".join([*lines, *([self.import_error] if self.import_error else [])])


def info() -> Info:
    """Look at the installation and the machine. Starts JAX's backends, to list devices.

    Returns:
        An `Info`; print it, or read its fields.
    """
    devices, no_cuda = _devices()
    reason = _native.extension_problem()
    ext = _native.extension() if reason is None else None
    built = {} if _native._ext is None else _native._ext.versions()
    libraries: dict[str, Any] = {} if ext is None else ext.libraries()
    usable = "usable"
    if reason is None:
        # Kernels of all engines are compiled where they run, or were loaded.
        compiler = None if libraries["loaded_kernels"] else libraries["nvrtc_error"]
        reason = compiler or libraries["driver_error"] or _no_gpu(devices, no_cuda)
        if reason is None and libraries["nvrtc_error"]:
            usable = f"usable with the kernels that were loaded only ({libraries['nvrtc_error']})"
    error = _native.import_error
    return Info(
        package=metadata.version("jax_qconv"),
        jax=jax.__version__,
        jaxlib=metadata.version("jaxlib"),
        ffi_built=_dotted(built.get("ffi_api")),
        ffi_running=_dotted(_native.running_ffi_api()),
        cudnn_headers=_dotted(built.get("cudnn")),
        cudnn=_dotted(libraries.get("cudnn")),
        driver=_dotted(libraries.get("driver")),
        devices=tuple(f"{d.platform}:{d.id} {d.device_kind}" for d in devices),
        engines={
            "cudnn": libraries.get("cudnn_error") or reason or usable,
            "depthwise": reason or usable,
            "pointwise": reason or usable,
            "stem": reason or usable,
            "wgmma": reason or _on_hopper(ext, usable),
            "reference": "usable",
        },
        import_error=None if error is None else "".join(traceback.format_exception(error)),
    )


def _on_hopper(ext: Any, usable: str) -> str:
    return usable if 90 in ext.compute_capabilities() else "for GPUs of sm_90 only"


def _dotted(version: tuple[int, ...] | None) -> str | None:
    return ".".join(map(str, version)) if version else None


def _devices() -> tuple[list[Any], str]:
    """Devices of all backends that start, JAX's default one first; and why CUDA didn't."""
    devices: list[Any] = []
    reason = ""
    for platform in (None, "cuda", "cpu"):
        try:
            devices += [d for d in jax.devices(platform) if d not in devices]
        except Exception as error:  # a backend may fail in any way; each is worth knowing
            if platform != "cpu":
                reason = str(error).partition("\n")[0] or type(error).__name__
    return devices, reason


def _no_gpu(devices: list[Any], reason: str) -> str | None:
    if any(d.platform in ("gpu", "cuda") for d in devices):
        return None
    return (
        f"JAX has no CUDA device ({reason}). On a machine with an NVIDIA GPU (driver 525 or "
        "newer), `pip install 'jax_qconv[cuda13]'` (or cuda12 for older drivers); JAX_PLATFORMS "
        "must not exclude cuda."
    )
