"""Where a tree differs from one that it should be like."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jax_qconv import _nodes
from jax_qconv._trees import join, shown


def check_like(tree: Any, like: Any, where: str = "") -> None:
    """Compare structure, static fields, and shapes and dtypes of leaves; values don't matter.

    Args:
        tree: as `_trees.rebuild` makes them.
        like: what it should be like; leaves may be `jax.ShapeDtypeStruct`.
        where: the place of both.

    Raises:
        ValueError: naming the first place that differs.
    """
    if type(tree) is not type(like) and not (_is_leaf(tree) and _is_leaf(like)):
        _refuse(where, _said(tree), _said(like))
    if isinstance(tree, dict):
        _check_items(tree, like, where)
    elif isinstance(tree, list | tuple):
        if len(tree) != len(like):
            _refuse(where, f"of {len(tree)} items", f"of {len(like)}")
        for i, pair in enumerate(zip(tree, like, strict=True)):
            check_like(*pair, join(where, i))
    elif type(tree) in _nodes.NODES.values():
        _check_node(tree, like, where)
    elif _said(tree) != _said(like):
        _refuse(where, _said(tree), _said(like))


def _check_items(tree: dict[str, Any], like: dict[Any, Any], where: str) -> None:
    for key in (*like, *tree):
        if key not in tree:
            raise ValueError(f"{join(where, key)} is missing, but is in `like`.")
        if key not in like:
            raise ValueError(f"{join(where, key)} is in the file, but not in `like`.")
    for key in tree:
        check_like(tree[key], like[key], join(where, key))


def _check_node(tree: Any, like: Any, where: str) -> None:
    found, wanted = _nodes.fields_of(tree), _nodes.fields_of(like)
    static = _nodes.static_fields(type(tree))
    # First: shapes follow from them.
    for name in static:
        if found[name] != wanted[name]:
            _refuse(join(where, name), repr(found[name]), repr(wanted[name]))
    for name in [name for name in found if name not in static]:
        check_like(found[name], wanted[name], join(where, name))


def _is_leaf(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or hasattr(value, "dtype")


def _said(value: Any) -> str:
    """What two leaves must have in common, in words."""
    if not _is_leaf(value) or isinstance(value, str):
        return "None" if value is None else f"a {type(value).__name__}"
    # A number of Python is what JAX would make of it.
    dtype = value.dtype if hasattr(value, "dtype") else jnp.result_type(type(value))
    return f"{dtype.name}{list(getattr(value, 'shape', ()))}"


def _refuse(where: str, found: str, wanted: str) -> None:
    raise ValueError(f"{shown(where)} is {found} in the file, but {wanted} in `like`.")
