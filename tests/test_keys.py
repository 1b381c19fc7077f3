import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hypelora_jax import keys as keys_lib

KEY = jax.random.key(0)


def bits(key):
    return jax.random.key_data(key).tolist()


def test_a_stream_depends_on_its_name_alone():
    first = keys_lib.named_keys(KEY, 3, "dropout", "noise")
    second = keys_lib.named_keys(KEY, 3, "noise", "other", "dropout")
    assert bits(first["dropout"]) == bits(second["dropout"])
    assert bits(first["noise"]) == bits(second["noise"])


def test_names_steps_and_base_keys_give_different_streams():
    keys = [keys_lib.named_key(KEY, name) for name in ("a", "b", "")]
    keys += [keys_lib.named_keys(KEY, step, "a")["a"] for step in (0, 1)]
    keys += [keys_lib.named_key(jax.random.key(1), "a"), KEY]
    assert len({tuple(bits(key)) for key in keys}) == len(keys)


def test_the_same_name_is_the_same_stream_in_every_process():
    # A hand number: Python's own hash() of a string differs between processes.
    want = jax.random.fold_in(KEY, 0xCBF43926)  # the check value of CRC-32
    assert bits(keys_lib.named_key(KEY, "123456789")) == bits(want)


def test_steps_may_be_traced():
    eager = keys_lib.named_keys(KEY, 5, "dropout")["dropout"]
    jitted = jax.jit(lambda step: keys_lib.named_keys(KEY, step, "dropout")["dropout"])(
        5
    )
    np.testing.assert_array_equal(bits(eager), bits(jitted))


def test_without_a_key_there_is_no_randomness():
    assert keys_lib.maybe(None, "dropout") is None
    assert bits(keys_lib.maybe(KEY, "dropout")) == bits(
        keys_lib.named_key(KEY, "dropout")
    )


RATE = 0.1


def masks(key, shape):
    """What a hash key drops with the rate RATE, as dropout does."""
    bits = jax.random.bits(key, shape, jnp.uint32)
    return np.asarray(bits < jnp.uint32(round(RATE * 2**32)))


def hash_key(seed=0):
    return keys_lib.mask_key(jax.random.key(seed), "hash")


def score(agreeing, n):
    """Standard score of the share of places where two independent masks both drop."""
    both = RATE**2
    return (agreeing - n * both) / np.sqrt(n * both * (1 - both))


def test_a_hashed_mask_has_its_rate_over_1e8_draws():
    dropped = sum(
        int(masks(keys_lib.fold_in(hash_key(), part), (1000, 10_000)).sum())
        for part in range(10)
    )
    sigma = np.sqrt(1e8 * RATE * (1 - RATE))
    assert abs(dropped - 1e8 * RATE) < 4 * sigma


def test_hashed_bits_are_uniform_in_each_byte():
    bits = np.asarray(jax.random.bits(hash_key(), (1_000_000,), jnp.uint32))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits >> shift) & 255, minlength=256)
        chi2 = ((counts - len(bits) / 256) ** 2 / (len(bits) / 256)).sum()
        assert 255 - 5 * np.sqrt(510) < chi2 < 255 + 5 * np.sqrt(510)


@pytest.mark.parametrize("axis", range(4))
def test_a_hashed_mask_is_not_correlated_along_any_axis(axis):
    mask = masks(hash_key(), (32, 12, 64, 64))
    for shift in (1, 2, 3, 8, 16):
        if shift < mask.shape[axis]:
            agreeing = (mask & np.roll(mask, shift, axis)).sum()
            assert abs(score(agreeing, mask.size)) < 5


def test_a_hashed_mask_has_as_many_runs_as_chance():
    mask = masks(hash_key(1), (4_000_000,))
    n, ones = mask.size, int(mask.sum())  # Wald and Wolfowitz 1940
    expected = 2 * ones * (n - ones) / n + 1
    deviation = np.sqrt((expected - 1) * (expected - 2) / (n - 1))
    runs = 1 + int((mask[1:] != mask[:-1]).sum())
    assert abs(runs - expected) < 4 * deviation


def test_hashed_masks_of_layers_steps_sites_and_seeds_are_independent():
    base = jax.random.key(0)
    at = lambda step, base=base: keys_lib.mask_key(  # noqa: E731
        keys_lib.named_keys(base, step, "rows")["rows"], "hash"
    )
    keys = [at(0), at(1), at(2), at(0, jax.random.key(1))]
    keys += [keys_lib.fold_in(at(0), layer) for layer in range(3)]
    keys += [keys_lib.named_key(at(0), site) for site in ("q", "attention", "1")]
    keys += list(jax.random.split(at(0), 3))
    drawn = [masks(key, (1_000_000,)) for key in keys]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(score((one & other).sum(), one.size)) < 5
            # nor is one a short shift of the other
            assert abs(score((one[1:] & other[:-1]).sum(), one.size)) < 5


def test_both_words_of_a_key_decide_what_it_draws():
    impl = jax.random.key_impl(hash_key())
    words = jnp.array([[3, 5], [3, 6], [4, 5]], jnp.uint32)
    drawn = [
        masks(key, (1_000_000,)) for key in jax.random.wrap_key_data(words, impl=impl)
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(score((one & other).sum(), one.size)) < 5


def test_rows_with_keys_of_their_own_draw_what_each_draws_alone():
    keys = jax.random.split(hash_key(), 3)
    together = jax.vmap(lambda key: jax.random.bits(key, (4, 5)))(keys)
    for key, own in zip(keys, together, strict=True):
        np.testing.assert_array_equal(jax.random.bits(key, (4, 5)), own)


def test_a_hashed_mask_is_the_same_under_any_sharding_of_the_rows():
    key, wanted = hash_key(), jax.random.bits(hash_key(), (16, 6, 10))
    for ways in (2, 8):
        mesh = jax.make_mesh((ways,), ("data",), devices=jax.devices()[:ways])
        rows = NamedSharding(mesh, P("data"))
        draw = jax.jit(
            lambda key: jax.random.bits(key, (16, 6, 10)), out_shardings=rows
        )
        np.testing.assert_array_equal(draw(key), wanted)
        text = draw.lower(key).compile().as_text()
        assert f"u32[{16 // ways},6,10]" in text
        assert "u32[16,6,10]" not in text  # no device draws all rows


def test_more_numbers_than_a_key_has_get_keys_by_their_first_axis(monkeypatch):
    whole = jax.random.bits(hash_key(), (4, 100))
    monkeypatch.setattr(keys_lib, "MOST", 200)
    parts = jax.random.bits(hash_key(), (4, 101))
    assert len(np.unique(parts)) == parts.size
    assert not set(np.asarray(whole).ravel()) & set(np.asarray(parts).ravel())


def test_masks_are_drawn_as_config_model_masks_says():
    threefry = jax.random.key(3)
    kinds = {
        name: str(jax.random.key_impl(keys_lib.mask_key(threefry, *name)))
        for name in (("threefry",), ("hash",), ("hardware",), ("auto",), ("auto", True))
    }
    assert kinds["threefry",] == "threefry2x32"
    assert kinds["hash",] == kinds["auto",] != kinds["hardware",]
    assert kinds["auto", True] == kinds["hardware",] == "rbg"
