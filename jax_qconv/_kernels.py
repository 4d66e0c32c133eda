"""Sets of compiled kernels: made where NVRTC is, taken over where it isn't.

A file is a line of JSON, which lists the kernels by the hashes of their sources, then their cubins
one after the other, then the SHA-256 of all that. The same kernels make the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

from jax_qconv import _native, _plan_model, _plan_store, _plans
from jax_qconv._collect import calls_of
from jax_qconv._problem import Problem
from jax_qconv._spec import is_int

FORMAT = 1
"""Of the files."""

KIND = "kernels of jax_qconv"
DIGEST_BYTES = hashlib.sha256().digest_size


def export_kernels(
    path: str | os.PathLike[str],
    fn: Callable[..., Any],
    *args: Any,
    compute_capability: int = 90,
) -> int:
    """Compile the package's own kernels that ``fn`` may need, for machines without NVRTC.

    They are those that convolve (depthwise and 1x1 convolutions and first layers), for the plans
    that a call may get on GPUs of this architecture, and those that verify plans, which also
    cuDNN's need. Needs NVRTC, but no GPU. cuDNN's kernels aren't among them.

    Args:
        path: of the file to write; its bytes depend on the kernels and versions only.
        fn: a function of arrays; it is traced, not run.
        args: as it is called: arrays or `jax.ShapeDtypeStruct`.
        compute_capability: of the GPUs that will run it, such as 90 for sm_90.

    Returns:
        How many kernels were written.

    Raises:
        EngineUnavailableError: without NVRTC or the extension.
        RuntimeError: if NVRTC doesn't compile for such GPUs.
        ValueError: if ``fn`` makes no convolution that needs a kernel, names a plan that can't run
            it, or if compute_capability is no number such as 90.
        OSError: if the file can't be written.
    """
    return export(path, calls_of(fn, *args), compute_capability)


def load_kernels(path: str | os.PathLike[str]) -> int:
    """Take over the kernels of a file that `export_kernels` wrote; NVRTC isn't asked for them.

    They are kept in the cache folder, ``$JAX_QCONV_CACHE_DIR``, for this process and all others
    that use it: loading them once, as when an image is built, will do. Where the driver has GPUs,
    the kernels must be for one of them. They are programs: load files that you trust.

    Args:
        path: of the file.

    Returns:
        How many kernels it has.

    Raises:
        ValueError: if it is no such file or damaged, of a newer format or other kernels than this
            version's, or for other GPUs than those here or a newer driver.
        OSError: if it can't be read, or the cache folder can't be written.
        EngineUnavailableError: without the extension.
    """
    path = pathlib.Path(path)
    extension = _native.extension()
    found = _Set.from_bytes(path.read_bytes(), path)
    if extension.hash(extension.checker_source()) not in found.cubins:
        raise ValueError(
            f"{path} has the kernels of jax_qconv {found.version}, which aren't those of the "
            f"version here, {metadata.version('jax_qconv')}; export them again with the latter."
        )
    _check_machine(found, path)
    for source, cubin in found.cubins.items():
        if not extension.keep_kernels(source, found.compute_capability, cubin):
            raise OSError(
                f"the kernels of {path} can't be kept in {_native.cache_dir()}; make it writable, "
                "or choose another folder with JAX_QCONV_CACHE_DIR."
            )
    return len(found.cubins)


def _check_machine(found: _Set, path: pathlib.Path) -> None:
    """Raises ValueError if the GPUs here can't run a set; they are asked for without JAX."""
    extension = _native.extension()
    here = sorted(set(extension.compute_capabilities()))
    if here and found.compute_capability not in here:
        raise ValueError(
            f"{path} has kernels for sm_{found.compute_capability}, but the GPUs here are "
            f"{', '.join(f'sm_{one}' for one in here)}; export them again with "
            f"compute_capability={here[0]} (--compute-capability on the command line)."
        )
    driver = extension.driver_version()
    if driver is not None and driver[0] < int(found.nvrtc.partition(".")[0]):
        raise ValueError(
            f"{path} has kernels that NVRTC {found.nvrtc} compiled, but the driver here is for "
            f"CUDA {driver[0]}.{driver[1]}; update it, or export them again with NVRTC {driver[0]} "
            f"(`pip install 'jax_qconv[cuda{driver[0]}]'`)."
        )


def export(
    path: str | os.PathLike[str],
    calls: Iterable[tuple[Problem, str | None]],
    compute_capability: int,
) -> int:
    """`export_kernels`, of problems, each with the plan that was named for it or None."""
    _plans.check_compute_capability(compute_capability)
    extension = _native.extension()
    try:
        nvrtc = extension.nvrtc_version()
    except RuntimeError as error:
        raise _native.EngineUnavailableError(f"exporting kernels: {error}") from error
    sources = _sources(calls, compute_capability)
    if not sources:
        raise ValueError(
            f"no convolution here needs a kernel, so {path} isn't written; those on empty batches "
            "or with implementation='reference' need none."
        )

    def compiled(source: str) -> bytes:
        return extension.compile_kernels(source, compute_capability, sources[source])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = list(pool.map(compiled, sources))
    names = map(extension.hash, sources)
    made = _Set(
        compute_capability,
        metadata.version("jax_qconv"),
        nvrtc,
        dict(sorted(zip(names, cubins, strict=True))),
    )
    pathlib.Path(path).write_bytes(made.to_bytes())
    return len(made.cubins)


def _sources(
    calls: Iterable[tuple[Problem, str | None]], compute_capability: int
) -> dict[str, str]:
    """The sources that calls need where they first run, and the names of their files."""
    extension = _native.extension()
    stored = _plan_store.plans_by_problem(compute_capability)
    sources: dict[str, str] = {}
    for problem, plan in calls:
        text, pinned = str(problem), plan is not None
        names = [plan]
        if not pinned:
            # Without a choice those that the engines suggest are tried.
            names = [_plans.DEFERRED, *stored.get(text, ())]
            names += _plan_store.similar_plans(problem, compute_capability)
            names += list(_plan_model.rank(problem, compute_capability))[:1]
        for name in dict.fromkeys(names):
            needed = extension.kernels_of(text, name, pinned)
            sources |= {source: file for file, source in needed}
    return sources


@dataclasses.dataclass(frozen=True)
class _Set:
    """What a file holds.

    Attributes:
        compute_capability: 90 for sm_90.
        version: of the package.
        nvrtc: version of the compiler.
        cubins: by the hash of their source, sorted.
    """

    compute_capability: int
    version: str
    nvrtc: str
    cubins: dict[str, bytes]

    def to_bytes(self) -> bytes:
        head = {
            "kind": KIND,
            "format": FORMAT,
            "compute_capability": self.compute_capability,
            "version": self.version,
            "nvrtc": self.nvrtc,
            "sizes": {source: len(cubin) for source, cubin in self.cubins.items()},
        }
        content = json.dumps(head).encode() + b"\n" + b"".join(self.cubins.values())
        return content + hashlib.sha256(content).digest()

    @classmethod
    def from_bytes(cls, content: bytes, path: pathlib.Path) -> _Set:
        """The opposite of `to_bytes`; ``path`` is for messages. Raises ValueError."""
        try:
            head = json.loads(content.partition(b"\n")[0])
            if head["kind"] != KIND or not is_int(head["format"]):
                raise ValueError("another kind of file")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            what = f"{path} is no set of kernels ({error!r}); make one with export_kernels."
            raise ValueError(what) from error
        if head["format"] > FORMAT:
            raise ValueError(
                f"{path} is of format {head['format']}, made by a newer jax_qconv; this version, "
                f"{metadata.version('jax_qconv')}, reads up to {FORMAT}: export the kernels again "
                "with it, or use the newer one."
            )
        try:
            return cls._from_parts(head, content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or cut short ({error}); copy it again, or make it again with "
                "export_kernels."
            ) from error

    @classmethod
    def _from_parts(cls, head: dict[str, Any], content: bytes) -> _Set:
        whole, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(whole).digest() != digest:
            raise ValueError("its content isn't that of its SHA-256")
        _plans.check_compute_capability(head["compute_capability"])
        if not re.fullmatch(r"[0-9]+\.[0-9]+", head["nvrtc"]):
            raise ValueError(f"it is of NVRTC {head['nvrtc']!r}")
        cubins: dict[str, bytes] = {}
        start = whole.index(b"\n") + 1
        for source, size in head["sizes"].items():
            # Nothing else gets near the names of files.
            if not re.fullmatch(r"[0-9a-f]{16}", source) or not is_int(size) or size < 1:
                raise ValueError(f"it has the kernel {source!r} of {size!r} bytes")
            cubins[source] = whole[start : start + size]
            start += size
        if start != len(whole):
            raise ValueError(f"it lists {start} bytes, but has {len(whole)}")
        return cls(head["compute_capability"], str(head["version"]), head["nvrtc"], cubins)
