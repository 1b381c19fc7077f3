"""Imported adapters as runs: trained on, judged; the reference's saved states."""

import json
import shutil

import numpy as np
import pytest
import step_zero
import tiny
from parity import golden
from safetensors.numpy import save_file

from hypelora_jax import cli, trees
from hypelora_jax.commands import train as runs
from hypelora_jax.config.settings import from_dict
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.exchange import imports
from hypelora_jax.interop import peft
from hypelora_jax.report import html, series

CONFIG = {
    "method": "lora",
    "data": {"source": "synthetic", "num_examples": 64, "max_length": 32},
    "optim": {"num_epochs": 1, "batch_size": 32, "lr": 3e-3},
    "log": {"every_steps": 1},
}


def test_an_import_is_evaluated_trained_on_and_reported(tmp_path):
    run = step_zero.run_folder(tmp_path / "run", "mlp", temperature=2.0)
    first, back = str(tmp_path / "first"), tmp_path / "back"
    assert cli.main(["export", f"--workdir={run}", f"--output={first}"]) == 0
    imports.import_adapter(first, str(back), config=from_dict(CONFIG))
    record = json.loads((back / "config.json").read_text())
    assert record["config"]["method"] == "lora" and record["total_steps"] == 2
    before = evaluation.evaluate(str(back), "calibration")
    assert before["step"] == 0 and before["temperature"] == 2.0
    opened = evaluation.open_fitted(str(back))
    assert cli.main(["train", f"--workdir={back}"]) == 0
    summary = json.loads((back / "summary.json").read_text())
    rows = [json.loads(x) for x in (back / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] == [1, 2]
    after = evaluation.evaluate(str(back), "calibration")
    # the imported state competes: what is chosen is never worse on the split
    assert after["uncalibrated"]["nll"] <= before["uncalibrated"]["nll"] + 1e-6
    assert summary["step"] in (0, 2)
    trained = evaluation.open_fitted(str(back))
    if summary["step"]:
        moved = trained.trainable["lora"]["q"]["b"] - opened.trainable["lora"]["q"]["b"]
        assert 0 < float(np.abs(moved).max()) < 0.05, "it went on from the adapter"
    page = tmp_path / "page.html"
    html.write_report([series.load(back)], page, replicas=0)
    assert page.stat().st_size > 1000
    again = runs.train(from_dict(record["config"]), str(back), progress=False)
    assert again == summary


def test_paths_are_recorded_so_that_they_mean_the_same_in_any_folder(
    tmp_path, monkeypatch
):
    shutil.copytree(golden.ROOT / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    imports.import_adapter(str(golden.ROOT / "peft_adapter"), "run", "base")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    opened = evaluation.open_fitted(str(tmp_path / "run"))
    assert opened.session.settings.model.path == str(tmp_path / "base")


def test_data_of_other_classes_is_refused(tmp_path):
    config = from_dict(CONFIG | {"data": CONFIG["data"] | {"num_classes": 3}})
    with pytest.raises(UserError, match="head has 2 outputs, but the data has 3"):
        imports.import_adapter(
            str(golden.ROOT / "peft_adapter"),
            str(tmp_path / "run"),
            str(golden.ROOT / "base"),
            config,
        )


def saved_adapter(path, case, tensors, prefix="end_", spoil=False):
    """What peft writes of the reference's model: the network once a module."""
    root, out = "base_model.model.", {}
    hyper = golden.under(tensors, f"{prefix}hyper/")
    for layer in case["hypernet_layers"]:
        for module in ("query", "value"):
            site = f"{root}roberta.encoder.layer.{layer}.attention.self.{module}"
            out |= {f"{site}.lora_A.hypernet.{n}": x for n, x in hyper.items()}
            out[f"{site}.lora_A.weight"] = np.float32(0)
    out |= golden.under(tensors, f"{prefix}lora/")
    for name, x in golden.under(tensors, f"{prefix}classifier/").items():
        out[f"{root}classifier.{name}"] = x
    out = {n: np.array(x, np.float32) for n, x in out.items()}
    if spoil:
        name = next(n for n in out if "layer.1" in n and n.endswith("fc1.bias"))
        out[name] = out[name] + 1
    path.mkdir()
    save_file(out, path / peft.TENSORS)
    fields = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": case["lora_r"]}
    fields |= {"lora_alpha": case["lora_alpha"], "target_modules": ["query", "value"]}
    (path / peft.CONFIG).write_text(json.dumps(fields))
    return path


def beside(path, settings, tensors):
    """The arrays the reference does not save, in slot order."""
    order = np.argsort(tensors["dyn_layer_id"])
    given = {"A": tensors["A"]} if settings.hyper.a == "fixed" else {}
    given |= {n: tensors[n][order] for n in ("initial_A", "initial_B")}
    np.savez(path, **given)
    return str(path)


FILES = [f for f in golden.MODELS if "_0_" not in f]  # 0 is 4 without its blending
REST = [pytest.param(f, marks=pytest.mark.soak) for f in FILES[2:]]


@pytest.mark.parametrize("file", FILES[:2] + REST)
def test_a_saved_hyper_network_of_the_reference_comes_in(file, tmp_path):
    case, tensors = golden.MODELS[file], golden.load(file)
    wanted = golden.model_settings(case, "float32")
    alpha = case["noise_alpha"]
    if len(tensors["alphas"]):  # it anneals: end_logits are at the last step's alpha
        alpha = float(tensors["alphas"][-1])
    blend = {"a": wanted.blend.a, "b": wanted.blend.b, "b_init": wanted.blend.b_init}
    config = from_dict(
        {
            "data": {"source": "synthetic", "num_examples": 64, "max_length": 32},
            "blend": blend | {"alpha": min(alpha, 1.0)},
            "hyper": {"heads": case["nhead"]},
        }
    )
    path = saved_adapter(tmp_path / "saved", case, tensors)
    factors = beside(tmp_path / "beside.npz", wanted, tensors)
    back = str(tmp_path / "back")
    imports.import_adapter(str(path), back, str(golden.ROOT / "base"), config, factors)
    run = evaluation.open_fitted(back)
    assert run.session.settings.method == wanted.method
    assert run.session.settings.hyper.a == wanted.hyper.a
    params = trees.union(run.trainable, run.frozen)
    got = tiny.predict(run.session.model, params, golden.batch(), run.alpha)
    np.testing.assert_allclose(got, tensors["end_logits"], rtol=0, atol=1e-4)


def test_saved_states_that_cannot_be_taken_up(tmp_path):
    file = "model_0_mlp_fixed_replace_replace.npz"
    case, tensors = golden.MODELS[file], golden.load(file)
    model = str(golden.ROOT / "base")
    path = saved_adapter(tmp_path / "spoilt", case, tensors, spoil=True)
    with pytest.raises(UserError, match="differs from that at .* in fc1.bias"):
        imports.import_adapter(str(path), str(tmp_path / "run"), model)
    path = saved_adapter(tmp_path / "saved", case, tensors)
    with pytest.raises(UserError, match="does not save A; expected --factors=FILE.npz"):
        imports.import_adapter(str(path), str(tmp_path / "run"), model)
    fields = json.loads((path / peft.CONFIG).read_text())
    mixed = json.dumps(fields | {"alpha_pattern": {"query": 2}})
    (path / peft.CONFIG).write_text(mixed)
    with pytest.raises(UserError, match="has alpha_pattern=.*; expected one rank and"):
        imports.import_adapter(str(path), str(tmp_path / "run"), model)
    (path / peft.CONFIG).write_text(json.dumps(fields))
    config = from_dict(CONFIG | {"hyper": {"a": "random"}})
    back = imports.import_adapter(str(path), str(tmp_path / "any"), model, config)
    run = evaluation.open_fitted(str(back))
    assert run.session.settings.hyper.a == "random"
    assert run.frozen["hyper"]["a"]["q"].shape == (3, 32, 4)
