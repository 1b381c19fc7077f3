"""Parameter trees as data: paths, partition by path, disjoint union."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

from hypelora_jax.types import Params


def flatten(tree: Params) -> dict[str, Any]:
    """Map slash paths to the leaves of a nested dict, sorted; empty dicts disappear."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def unflatten(flat: dict[str, Any]) -> Params:
    """Build a nested dict from slash paths; the inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree


def partition(tree: Params, trains: Callable[[str], bool]) -> tuple[Params, Params]:
    """Split a tree into (trainable, frozen) by a predicate on the path."""
    flat = flatten(tree)
    trainable = {p: x for p, x in flat.items() if trains(p)}
    frozen = {p: x for p, x in flat.items() if p not in trainable}
    return unflatten(trainable), unflatten(frozen)


def union(left: Params, right: Params, path: str = "") -> Params:
    """Return the disjoint union of two nested dicts.

    Raises:
      ValueError: a leaf is in both trees.
    """
    out = dict(left)
    for name, value in right.items():
        here = f"{path}/{name}" if path else name
        if name not in out:
            out[name] = value
        elif isinstance(out[name], dict) and isinstance(value, dict):
            out[name] = union(out[name], value, here)
        else:
            raise ValueError(
                f"both trees have {here}; a leaf is either trainable or frozen"
            )
    return out


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a predicate that says whether any pattern matches a whole path."""
    compiled = [re.compile(p) for p in patterns]
    return lambda path: any(p.fullmatch(path) for p in compiled)


def map_with_path(f: Callable[[str, Any], Any], tree: Params) -> Params:
    """Apply `f(path, leaf)` to each leaf and keep the structure."""
    return jax.tree_util.tree_map_with_path(
        lambda p, x: f(jax.tree_util.keystr(p, simple=True, separator="/"), x), tree
    )


def count(tree: Params) -> int:
    """Return the number of scalars in a tree (arrays or shape structs)."""
    return sum(x.size for x in jax.tree.leaves(tree))


def nbytes(tree: Params) -> int:
    """Return the total bytes of a tree's leaves (arrays or shape structs)."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
