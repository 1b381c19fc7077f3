import jax
import numpy as np

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
