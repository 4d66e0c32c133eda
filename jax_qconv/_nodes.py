"""The package's own nodes of a tree, by name: their fields, and whether what they hold fits.

Files name nodes and fields as they are here. A field that is added to one needs a default, which
those of older files get; a new node, or a field of another meaning, raises `_io.FORMAT`, and what
older releases would read wrongly raises `_spec.FORMAT_VERSION`.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

import jax
import numpy as np

from jax_qconv import _spec
from jax_qconv._activation import Activation
from jax_qconv._binding import Binding
from jax_qconv._fold import RESIDUAL_MODES, Constants, Epilogue
from jax_qconv._packed_conv import PackedConv, check_format
from jax_qconv._quantize import QTensor, checked
from jax_qconv._space_to_depth import Blocks
from jax_qconv._subpixel import Phases

NODES: dict[str, type] = {
    node.__name__: node
    for node in (Activation, Binding, Blocks, Constants, Epilogue, PackedConv, Phases, QTensor)
}
"""All of them; nothing else is ever made from a file."""


_TREES = (Binding, Constants, PackedConv, QTensor)
"""Those that are pytrees; the others are static parts of them."""


def fields_of(node: Any) -> dict[str, Any]:
    """The fields of a node by name, numpy's integers among the static ones as Python's."""
    fields = {name: getattr(node, name) for name in types_of(type(node))}
    for name in static_fields(type(node)):
        if isinstance(fields[name], np.integer):
            fields[name] = int(fields[name])
    return fields


@functools.cache
def types_of(node: type) -> dict[str, Any]:
    """The types of a node's fields by name."""
    hints = typing.get_type_hints(node)
    return {field.name: hints[field.name] for field in dataclasses.fields(node)}


@functools.cache
def static_fields(node: type) -> list[str]:
    """The names of the fields that are part of a tree's structure."""
    fields = dataclasses.fields(node)
    return [f.name for f in fields if node not in _TREES or f.metadata.get("static")]


def make(kind: str, fields: dict[str, Any]) -> Any:
    """A node of its name and fields, those that are missing being their defaults.

    Raises:
        TypeError, ValueError: if the fields aren't those of such a node, or don't fit.
    """
    # First: in a newer format there may be anything.
    if kind == PackedConv.__name__:
        _check_version(fields.get("format_version"))
    surplus = fields.keys() - types_of(NODES[kind]).keys()
    if surplus:
        raise ValueError(f"a {kind} has no field {', '.join(map(repr, sorted(surplus)))}")
    return NODES[kind](**fields)


def check(node: Any) -> None:
    """Whether the fields of a node are of their types and fit each other.

    Raises:
        TypeError, ValueError: if not.
    """
    fields = fields_of(node)
    for name, kind in types_of(type(node)).items():
        value = fields[name]
        if not (_is_data(value) if kind is Any else _is_of(value, kind)):
            want = "an array, a number or None" if kind is Any else _named(kind)
            raise TypeError(f"its {name} must be {want}, got {type(value).__name__} {value!r:.80}")
    if isinstance(node, QTensor):
        checked("it", node)
    elif isinstance(node, Epilogue):
        _one_of("out_dtype", node.out_dtype, _spec.OUT_DTYPES)
        _one_of("residual_mode", node.residual_mode, (None, *RESIDUAL_MODES))
    elif isinstance(node, PackedConv):
        _check_pack(node)


def _check_pack(pack: PackedConv) -> None:
    if pack.rank not in _spec.AXES:
        raise ValueError(f"its strides must be one to three ints, got {pack.strides!r}")
    _spec.as_ints("its strides", pack.strides, rank=pack.rank, minimum=1)
    _spec.as_ints("its dilation", pack.dilation, rank=pack.rank, minimum=1)
    _spec.as_padding(pack.padding, rank=pack.rank)
    if pack.form is not None:
        _spec.as_ints("its form's kernel", pack.form.kernel, rank=pack.rank, minimum=1)
        _spec.as_ints("its form's strides", pack.form.strides, rank=pack.rank, minimum=1)
    if min(pack.in_channels, pack.out_channels, pack.groups, pack.merge) < 1:
        raise ValueError("its in_channels, out_channels, groups and merge must be positive")
    check_format(_one_of_a_stack(pack))


def _one_of_a_stack(pack: PackedConv) -> PackedConv:
    """Without the leading axes of packs that are stacked, for `jax.lax.scan` say; without data."""
    shape = getattr(pack.weight, "shape", ())
    leading = shape[: max(len(shape) - pack.rank - 2, 0)]

    def one(leaf: Any) -> Any:
        if not leading or getattr(leaf, "shape", ())[: len(leading)] != leading:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape[len(leading) :], leaf.dtype)

    return jax.tree.map(one, pack)


def _check_version(version: Any) -> None:
    if _spec.is_int(version) and version > _spec.FORMAT_VERSION:
        raise ValueError(
            f"the pack is of format version {version}; this jax_qconv reads up to "
            f"{_spec.FORMAT_VERSION}: update jax_qconv, or prepack the weights again"
        )


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"its {name} must be one of {list(known)}, got {value!r}")


def _is_data(value: Any) -> bool:
    return value is None or isinstance(value, jax.Array | np.ndarray | np.generic | int | float)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as annotations write it; a bool is no int, and so on."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, one) for one in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        if type(value) is not tuple:
            return False
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(kinds) == len(value) and all(map(_is_of, value, kinds))
    return type(value) is kind


def _named(kind: Any) -> str:
    """A type in words."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(_named, args))
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {list(args)}"
    if kind is type(None):
        return "None"
    return kind.__name__ if isinstance(kind, type) and not args else str(kind)
