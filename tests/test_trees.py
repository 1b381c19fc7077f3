import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypelora_jax import trees

TREE = {
    "head": {"out": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3, jnp.bfloat16)}},
    "backbone": {"embed": jnp.arange(4.0)},
}


def test_flatten_gives_sorted_slash_paths_and_unflatten_inverts_it():
    flat = trees.flatten(TREE)
    assert list(flat) == ["backbone/embed", "head/out/bias", "head/out/kernel"]
    back = trees.unflatten(flat)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)


def test_partition_splits_by_path_and_union_joins_again():
    train, frozen = trees.partition(TREE, trees.matcher([r"head/.*"]))
    assert list(trees.flatten(train)) == ["head/out/bias", "head/out/kernel"]
    assert list(trees.flatten(frozen)) == ["backbone/embed"]
    joined = trees.union(train, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(TREE)


def test_partition_may_leave_one_side_empty():
    assert trees.partition(TREE, lambda path: False)[0] == {}
    assert trees.partition(TREE, lambda path: True)[1] == {}


def test_union_joins_within_a_branch_and_changes_no_argument():
    left, right = {"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}
    assert trees.union(left, right) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert left == {"a": {"b": 1}} and right == {"a": {"c": 2}, "d": 3}


@pytest.mark.parametrize("right", [{"a": {"b": 2}}, {"a": 2}, {"a": {"b": {"c": 2}}}])
def test_union_refuses_a_clash_and_names_it(right):
    with pytest.raises(ValueError, match=r"both trees have a"):
        trees.union({"a": {"b": 1}}, right)


def test_union_works_inside_a_differentiated_function():
    def loss(train, frozen):
        flat = trees.flatten(trees.union(train, frozen))
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in flat.values())

    train, frozen = trees.partition(TREE, trees.matcher(["backbone/embed"]))
    grad = jax.grad(loss)(train, frozen)
    np.testing.assert_allclose(grad["backbone"]["embed"], 2 * jnp.arange(4.0))


def test_matcher_matches_whole_paths_only():
    match = trees.matcher([r"head/.*", "cond"])
    assert match("head/out/bias") and match("cond")
    assert not match("conditions") and not match("backbone/head/x")
    assert not trees.matcher([])("head")


def test_map_with_path_keeps_the_structure():
    paths = trees.map_with_path(lambda path, x: path, TREE)
    assert paths["head"]["out"]["bias"] == "head/out/bias"
    assert jax.tree.structure(paths) == jax.tree.structure(TREE)


def test_count_and_nbytes_of_arrays_and_of_shapes():
    assert trees.count(TREE) == 6 + 3 + 4
    assert trees.nbytes(TREE) == 6 * 4 + 3 * 2 + 4 * 4
    shapes = jax.eval_shape(lambda: TREE)
    assert trees.count(shapes) == 13 and trees.nbytes(shapes) == 46
    assert trees.count({}) == trees.nbytes({}) == 0
