"""Trees in files: `save`, `load`, `read_header`.

A file is one of safetensors, which has the arrays, with one entry of metadata, `KEY`: JSON of the
format's version, the package's, a note, hints of plans, and the tree around the arrays.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import uuid
from collections.abc import Mapping
from importlib import metadata
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jax_qconv import _like, _native, _trees
from jax_qconv._problem import Problem
from jax_qconv._spec import is_int

FORMAT = 1
"""Of the files."""

KEY = "jax_qconv"
"""One entry, as safetensors writes several in any order."""

_HEAD_LIMIT = 100_000_000  # bytes, that of safetensors


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        format: version of the files' format.
        version: of the package that wrote it.
        note: what `save` was given.
        plans: names of plans by the texts of their problems: hints, that nothing uses by itself.
    """

    format: int
    version: str
    note: str | None
    plans: dict[str, str]


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    plans: Mapping[Any, str] | None = None,
    note: str | None = None,
) -> None:
    """Write a tree of packs and arrays to a file of safetensors; `load` gives the same bytes again.

    The tree is made of dicts with strings as keys, lists, tuples, None, numbers and strings of
    Python, arrays of JAX or numpy, and of this package `PackedConv`, bound or not, and `QTensor`.
    Arrays have readable names in the file, such as ``conv1.weight``. The same tree makes the same
    bytes. A file that is there is replaced as a whole or, where writing fails, stays as it is.
    Arrays that are sharded over devices of this process are gathered. With several processes let
    one of them save.

    Needs safetensors: ``pip install 'safetensors>=0.4.5'``, the extra ``io``.

    Args:
        path: of the file to write, by custom ``.safetensors``.
        tree: what to save.
        plans: names of plans by problem, such as ``{tuned.problem: tuned.entry.plan}`` of what
            `tune` found: hints for `read_header`.
        note: any text.

    Returns:
        None.

    Raises:
        TypeError: on what can't be saved, such as another type of node; names its place.
        ValueError: on packs that were cast or cut, arrays that are traced, deleted or in part on
            other processes, and on bad plans.
        ImportError: without safetensors.
        OSError: if the file can't be written.
        EngineUnavailableError: with plans, without the extension.
    """
    safetensors = _safetensors()
    if note is not None and not isinstance(note, str):
        raise TypeError(f"note must be a string or None, got {type(note).__name__}.")
    content, arrays = _trees.flatten(tree)
    names = _checked_plans({} if plans is None else plans)
    header = Header(FORMAT, metadata.version("jax_qconv"), note, names)
    text = json.dumps(dataclasses.asdict(header) | {"tree": content})
    # Not its save_file: that makes files that only their owner may read, and errors of its own.
    written = safetensors.numpy.save(arrays, {KEY: text})
    path = pathlib.Path(path)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], *, like: Any = None) -> Any:
    """Read what `save` wrote, on whatever backend.

    Arrays come back as what they were, of JAX or of numpy, in every bit; those of JAX on the
    default device, not committed to it: `jax.device_put` shards them. What was weakly typed has
    its dtype for good. Nothing in a file is executed.

    Args:
        path: of the file.
        like: a tree such as the one to be read, of arrays or of `jax.ShapeDtypeStruct` (from
            `jax.eval_shape`): structure, static fields, shapes and dtypes must be the same, values
            may differ. None reads what is there.

    Returns:
        The tree.

    Raises:
        ValueError: if it is no such file, damaged, or of a newer format, or if a leaf doesn't fit
            its description, its pack or ``like``; names the leaf.
        ImportError: without safetensors.
        OSError: if it can't be read.
    """
    safetensors = _safetensors()
    content = pathlib.Path(path).read_bytes()
    _, tree = _parse(io.BytesIO(content), path)
    try:
        arrays = {name: _array(name, **fields) for name, fields in safetensors.deserialize(content)}
        tree = _trees.rebuild(tree, arrays)
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, cut short or was changed: {error}.") from error
    if like is not None:
        try:
            _like.check_like(tree, like)
        except ValueError as error:
            raise ValueError(f"{path} holds another tree: {error}") from error
    return tree


def read_header(path: str | os.PathLike[str]) -> Header:
    """What a file of `save` says of itself, without reading its arrays; needs no safetensors.

    Args:
        path: of the file.

    Returns:
        Versions, note and plans.

    Raises:
        ValueError: if it is no such file, damaged, or of a newer format.
        OSError: if it can't be read.
    """
    with pathlib.Path(path).open("rb") as file:
        return _parse(file, path)[0]


def _parse(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[Header, Any]:
    """The header of a file, and the JSON of its tree; ``path`` is for messages."""
    size = int.from_bytes(file.read(8), "little")
    try:
        if size > _HEAD_LIMIT:
            raise ValueError("its first eight bytes are no length")
        fields = json.loads(json.loads(file.read(size))["__metadata__"][KEY])
        if not is_int(fields["format"]):
            raise ValueError("its format has no version")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no file that jax_qconv.save wrote, or is cut short ({error!r})."
        ) from error
    if fields["format"] > FORMAT:
        raise ValueError(
            f"{path} is of format {fields['format']}, made by jax_qconv {fields.get('version')}; "
            f"this version, {metadata.version('jax_qconv')}, reads up to {FORMAT}: update it."
        )
    try:
        header = Header(*(fields[field.name] for field in dataclasses.fields(Header)))
        texts = [header.version, *header.plans, *header.plans.values()]
        if not all(isinstance(text, str) for text in [*texts, header.note or ""]):
            raise TypeError("version, note and plans must be strings")
        return header, fields["tree"]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a damaged header ({error!r}).") from error


def _array(name: str, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    known = {code: dtype for dtype, code in _trees.DTYPES.items()}
    if dtype not in known:
        raise ValueError(f"{name} is of dtype {dtype}, which jax_qconv doesn't save")
    return np.frombuffer(data, jnp.dtype(known[dtype])).reshape(shape)


def _checked_plans(plans: Mapping[Any, str]) -> dict[str, str]:
    """Plans by problem as their texts are written, sorted."""
    checked = {}
    for problem, plan in plans.items():
        try:
            text = str(Problem.parse(str(problem)))
        except (KeyError, ValueError) as error:
            raise ValueError(f"plans has {problem!r}, which is no problem ({error!r}).") from error
        checked[text] = _native.extension().parse_plan(plan)
    return dict(sorted(checked.items()))


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "save and load need safetensors: `pip install 'safetensors>=0.4.5'` (the extra `io` of "
            "jax_qconv)."
        ) from error
    return safetensors
