"""Trees as JSON and named arrays, and back.

JSON has None, bools, ints, finite floats, strings and lists as they are. Everything else is an
object of one item, whose key says what it is: ``{"tuple": [...]}``, ``{"dict": {...}}``,
``{"float": "inf"}``, ``{"array": {"name": ..., ...}}``, or a node of the package with its fields.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_qconv import _nodes
from jax_qconv._arrays import is_concrete

DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""Dtypes of arrays, and what safetensors calls them."""

_NOT_FINITE = ("inf", "-inf", "nan")


def flatten(tree: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A tree as JSON, and its arrays by name.

    Raises:
        TypeError: on what can't be saved, with its place and type.
        ValueError: on nodes that hold what doesn't fit, and arrays that can't be read here.
    """
    arrays: dict[str, np.ndarray] = {}
    return _to_json(tree, "", arrays), arrays


def rebuild(content: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The opposite of `flatten`.

    Raises:
        ValueError: if it isn't what `flatten` made; names what doesn't fit.
    """
    left = dict(arrays)
    tree = _from_json(content, "", left)
    if left:
        raise ValueError(f"there are arrays that belong nowhere: {', '.join(sorted(left))}")
    return tree


def join(where: str, key: Any) -> str:
    """The place of a child."""
    return f"{where}.{key}" if where else str(key)


def shown(where: str) -> str:
    """A place in messages."""
    return where or "the tree itself"


def _to_json(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, jax.Array | np.generic) or kind in (np.ndarray, np.memmap):
        return {"array": _take(value, where, arrays)}
    if kind in (list, tuple):
        items = [_to_json(item, join(where, i), arrays) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(
                    f"{shown(where)} has the key {key!r} of type {type(key).__name__}; keys of "
                    "dicts must be strings to be saved."
                )
        # As pytrees have them: the order in which they were put in must not matter.
        items = {key: _to_json(value[key], join(where, key), arrays) for key in sorted(value)}
        return {"dict": items}
    if kind not in _nodes.NODES.values():
        raise TypeError(
            f"{shown(where)} is a {kind.__module__}.{kind.__qualname__}, which can't be saved; "
            "what can are dicts, lists, tuples, None, numbers, strings, arrays, PackedConv and "
            "QTensor. Turn it into these, a state of Flax for instance into dicts."
        )
    try:
        _nodes.check(value)
    except (TypeError, ValueError) as error:
        problem = TypeError if isinstance(error, TypeError) else ValueError
        raise problem(f"{shown(where)}, a {kind.__name__}, can't be saved: {error}") from error
    fields = _nodes.fields_of(value).items()
    return {kind.__name__: {name: _to_json(v, join(where, name), arrays) for name, v in fields}}


def _take(array: Any, where: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Put an array among the others, and say what it is."""
    kind = "jax" if isinstance(array, jax.Array) else "numpy"
    if isinstance(array, np.generic):
        kind = "number"
    dtype = str(array.dtype) if kind == "jax" else array.dtype.name
    if dtype not in DTYPES:
        raise TypeError(
            f"{shown(where)} is of dtype {dtype}, which can't be saved; use one of "
            f"{', '.join(DTYPES)} (of random keys, save jax.random.key_data)."
        )
    if not is_concrete(array):
        why = (
            "is traced; save outside of jax.jit and other transformations"
            if isinstance(array, Tracer)
            else "lies in part on devices of other processes; gather it before, with "
            "jax.experimental.multihost_utils.process_allgather(x, tiled=True)"
        )
        raise ValueError(f"{shown(where)} {why}.")
    if isinstance(array, jax.Array) and array.is_deleted():
        raise ValueError(f"{shown(where)} was deleted, or donated to a function.")
    name = first = where or "array"
    count = 1
    # Keys may have dots in them; the one name is safetensors' own.
    while name in arrays or name == "__metadata__":
        count += 1
        name = f"{first}#{count}"
    arrays[name] = np.asarray(array, dtype=jnp.dtype(dtype), order="C")
    return {"name": name, "dtype": dtype, "shape": list(array.shape), "of": kind}


def _from_json(content: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(content, list):
        return [_from_json(item, join(where, i), arrays) for i, item in enumerate(content)]
    if not isinstance(content, dict):
        return content
    if len(content) != 1:
        raise ValueError(f"{shown(where)} is {str(content)[:80]}, which says nothing")
    ((kind, inner),) = content.items()
    if kind == "tuple" and isinstance(inner, list):
        return tuple(_from_json(inner, where, arrays))
    if kind == "float" and inner in _NOT_FINITE:
        return float(inner)
    if kind in ("dict", "array", *_nodes.NODES) and isinstance(inner, dict):
        if kind == "array":
            return _give(inner, where, arrays)
        items = {key: _from_json(item, join(where, key), arrays) for key, item in inner.items()}
        return items if kind == "dict" else _node(kind, items, where)
    raise ValueError(f"{shown(where)} is a {kind!r}, which isn't known, or is none in truth")


def _node(kind: str, fields: dict[str, Any], where: str) -> Any:
    try:
        node = _nodes.make(kind, fields)
        _nodes.check(node)
    # What is static was typed by hand, maybe: whatever it does, it is the file's fault.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{shown(where)} is no {kind} that fits: {error}") from error
    return node


def _give(header: dict[str, Any], where: str, arrays: dict[str, np.ndarray]) -> Any:
    """Take an array from among the others, as the header describes it."""
    if header.keys() != {"name", "dtype", "shape", "of"}:
        raise ValueError(f"{shown(where)} is described by {', '.join(header)} only, or more")
    if not isinstance(header["name"], str) or header["name"] not in arrays:
        raise ValueError(f"{shown(where)} has no array: {header['name']!r} is missing")
    array = arrays.pop(header["name"])
    found = f"{array.dtype.name}{list(array.shape)}"
    if header["dtype"] != array.dtype.name or header["shape"] != list(array.shape):
        raise ValueError(
            f"{shown(where)} is {found}, but must be {header['dtype']}{header['shape']}"
        )
    if header["of"] == "jax":
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"{shown(where)} is {found}; JAX has 64 bits with jax.config.update"
                "('jax_enable_x64', True) only"
            )
        return jnp.asarray(array)
    if header["of"] not in ("numpy", "number") or (header["of"] == "number" and array.ndim):
        raise ValueError(f"{shown(where)} is {found} of {header['of']!r}, which isn't known")
    # Its own memory, to be written to.
    return array[()] if header["of"] == "number" else array.copy()
