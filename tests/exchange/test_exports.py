"""Ensembles and seeds as adapters, by the real command: all, or those named."""

import json

import jax
import numpy as np
import pytest
import step_zero
from safetensors.numpy import load_file

from hypelora_jax import cli, trees
from hypelora_jax.commands.shared import continuation
from hypelora_jax.evaluate import evaluation
from hypelora_jax.exchange import exports, imports
from hypelora_jax.interop import peft
from hypelora_jax.run.paths import Run
from hypelora_jax.train import ensembles, loop
from hypelora_jax.train import session as session_lib


def export(run, output, *flags):
    return cli.main(["export", f"--workdir={run}", f"--output={output}", *flags])


def of_member(run, k, batch):
    """Logits of one member, as its run predicts them."""
    own = ensembles.member(run.session.settings, run.trainable, run.frozen, k)
    params = trees.union(*own)
    lora = run.forward.adapt(params, run.alpha, {})
    rows = {n: batch[n] for n in ("ids", "mask", "types")}
    return jax.device_get(run.forward.classify(params, lora, rows))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("hyper_ensemble", "mlp"),
        pytest.param("deep_ensemble", "lora", marks=pytest.mark.soak),
    ],
)
def test_members_leave_as_they_predict(kind, mode, tmp_path, capsys):
    own = {"kind": kind, "samples": 3}
    path = step_zero.run_folder(tmp_path / "run", mode, uncertainty=own)
    assert export(path, tmp_path / "out", "--only=member_2,member_0") == 0
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    assert names == ["member_0", "member_2"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    run, batch, found = evaluation.open_fitted(str(path)), step_zero.batch(), {}
    for k in (0, 2):
        back = tmp_path / f"back_{k}"
        imports.import_adapter(str(tmp_path / f"out/member_{k}"), str(back))
        found[k] = step_zero.logits(back, batch)
        np.testing.assert_allclose(found[k], of_member(run, k, batch), atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-4, "members differ"


def test_only_by_the_command(tmp_path, capsys):
    seeds = tmp_path / "seeds"
    for i in range(2):
        step_zero.run_folder(seeds / f"seed_{i}")
    assert export(seeds, tmp_path / "one", "--only=seed_1") == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["seed_1"]
    capsys.readouterr()
    assert export(seeds, tmp_path / "none", "--only=seed_1,seed_7") == 2
    assert "--only is 'seed_7'; expected one of seed_0" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert export(seeds / "seed_0", tmp_path / "none", "--only=seed_0") == 2
    assert "so there is no choice; leave --only out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "mode",
    ["patterns_mlp", pytest.param("patterns_transformer", marks=pytest.mark.soak)],
)
def test_a_network_for_sites_of_several_ranks_trains_and_leaves(mode, tmp_path):
    data = {"source": "synthetic", "num_examples": 64, "max_length": 32}
    optim = {"num_epochs": 1, "batch_size": 32}
    config = step_zero.settings(mode, data=data, optim=optim)
    corpus, run = session_lib.load_corpus(config), Run.create(tmp_path / "run")
    session = session_lib.open_session(config, corpus.task)
    session = session_lib.with_data(session, corpus)
    continuation.check_or_begin(run, session, None)
    loop.train(session, run, progress=False)
    (out,) = exports.export(str(run.path), str(tmp_path / "out"))
    fields = json.loads((out / peft.CONFIG).read_text())
    assert sorted(fields["rank_pattern"].values()) == [1, 4, 4]
    for name, x in load_file(out / peft.TENSORS).items():
        if ".layer.1." in name and name.endswith("lora_B.weight"):
            assert (x != 0).any(axis=0).all(), "each component of B has trained"
    back = imports.import_adapter(str(out), str(tmp_path / "back"))
    got, wanted = (step_zero.logits(r, step_zero.batch()) for r in (back, run.path))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    exports.export(str(run.path), str(tmp_path / "merged"), "merged")
