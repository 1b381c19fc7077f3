"""Packed answers: the same as alone, in fewer rows, from programs that are compiled."""

import dataclasses

import jax
import numpy as np
import pytest
import step_zero

from hypelora_jax.inference import predictor, single_run
from hypelora_jax.inference.predictor import token_dataset
from hypelora_jax.inference.single_run import merged
from hypelora_jax.train.divergence import NotFinite

RNG = np.random.default_rng(0)
SIZES = (8, 32)  # multiples of the 8 devices


@pytest.fixture(scope="module", params=["lora", "mlp"])
def both(request, tmp_path_factory):
    """A run that answers text by text, and the same with packed rows."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = step_zero.run_folder(folder, request.param)
    one = predictor.load(str(run), batch_sizes=SIZES)
    return one, single_run.packed(merged(one))


def drawn(one, lengths):
    words = one.fitted.session.base.config.vocab
    ids = [RNG.integers(5, words, n, dtype=np.int32) for n in lengths]
    return token_dataset(one, ids, [np.zeros_like(x) for x in ids])


@pytest.mark.parametrize("count", [1, 9, 70])
def test_answers_are_the_same_as_alone(both, count):
    alone, packing = both
    lengths = RNG.integers(2, packing.packs + 1, count)
    data = drawn(alone, lengths)
    want = alone.answerers[32](data).logits
    for answerer in packing.answerers.values():
        np.testing.assert_allclose(answerer(data).logits, want, atol=2e-6)
    assert np.ptp(want) > 1e-3, "texts have different answers"


def test_a_row_has_several_texts_and_the_fewest_rows_are_short(both, monkeypatch):
    _, one = both
    shapes = []
    classify = one.fitted.forward.classify

    def seen(params, adapter, rows):
        shapes.append(rows["ids"].shape)
        return classify(params, adapter, rows)

    forward = one.fitted.forward._replace(classify=seen)
    one = single_run.packed(one._replace(fitted=one.fitted._replace(forward=forward)))
    assert list(one.answerers) == [8, 16, 32]
    shortest, longest = one.edges[0], one.packs
    one.answerers[8](drawn(one, [shortest] * 8))
    one.answerers[8](drawn(one, [longest // 4] * 32))
    one.answerers[16](drawn(one, [2]))
    one.answerers[8](drawn(one, [longest] * 9))
    assert shapes == [(8, shortest), *[(n, longest) for n in (8, 16, 8, 8)]]


def test_rows_are_as_long_as_the_longest_edge_that_is_not_too_long():
    assert single_run.row_length((16, 32, 64)) == 64
    assert single_run.row_length((16, 64, 128, 256)) == 128
    assert single_run.row_length((512,)) == 512


def test_nan_of_a_text_reaches_no_other_of_its_row(both):
    _, one = both
    data = drawn(one, [4] * 32)
    bad = [3, 17]
    for n, ids in enumerate(data.encoded.ids):
        ids[:] = np.where(ids == 7, 8, ids)
        ids[1] = 7 if n in bad else 9

    def spoiled(path, x):
        return x.at[7].set(np.nan) if "'word'" in jax.tree_util.keystr(path) else x

    frozen = jax.tree_util.tree_map_with_path(spoiled, one.fitted.frozen)
    fitted = one.fitted._replace(frozen=frozen)
    one = single_run.packed(one._replace(fitted=fitted))
    with pytest.raises(NotFinite) as error:
        one.answerers[8](data)
    assert error.value.rows.tolist() == bad


def test_runs_that_cannot_pack_are_left_as_they_are(both, tmp_path):
    one, _ = both
    config = one.settings
    fused = dataclasses.replace(config.model, attention="fused")
    session = one.fitted.session._replace(
        settings=dataclasses.replace(config, model=fused)
    )
    kernel = one._replace(fitted=one.fitted._replace(session=session))
    assert single_run.packed(kernel) is kernel
    drops = {"uncertainty": {"kind": "mc_dropout", "samples": 2}}
    run = step_zero.run_folder(tmp_path / "run", **drops)
    several = predictor.load(str(run), batch_sizes=SIZES)
    assert single_run.packed(several) is several
