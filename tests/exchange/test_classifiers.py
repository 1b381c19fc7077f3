"""Fine-tuned classifiers as runs: their labels, their logits, and what follows."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import step_zero
import tiny
from safetensors.numpy import load_file, save_file

import hypelora_jax
from hypelora_jax import cli, families
from hypelora_jax.config.settings import from_dict
from hypelora_jax.data import tokens
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.exchange import classifier_labels, classifiers, exports
from hypelora_jax.interop import huggingface
from hypelora_jax.interop.base import load, resolve
from hypelora_jax.run import predictions
from hypelora_jax.train.session import load_corpus

LABELS = ("class_f", "class_b", "class_d")  # not in the order of the data
DATA = {"source": "synthetic", "num_classes": 3, "num_examples": 64, "max_length": 32}
CONFIG = {
    "data": DATA,
    "hyper": {"widths": (16,)},
    "optim": {"num_epochs": 1, "batch_size": 32, "lr": 3e-3},
}
HEAD = {"method": "head"}


def save(path, labels=LABELS, outputs=3, family="roberta", **fields):
    """A classifier as another program saves it; fields that are None are left out."""
    config = replace(families.preset("tiny"), family=family)
    if family in ("bert", "distilbert"):
        config = replace(config, pad_id=0, type_vocab=2 * (family == "bert"))
    params = {
        "backbone": tiny.encoder(config).init(jax.random.key(0)),
        "head": tiny.head(config, outputs).init(jax.random.key(1)),
    }
    huggingface.save_model(path, config, tiny.shaken(params, by=0.1), labels=labels)
    roles = families.of(config).tokens
    own = tokens.tokenizer(None, roles, config.pad_id)
    for name, text in tokens.hugging_face_files(own, roles, 64).items():
        (path / name).write_text(text)
    edit(path, **fields)
    return str(path)


def edit(path, **fields):
    file = path / "config.json"
    held = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({n: x for n, x in held.items() if x is not None}))


def of_file(path, outputs, batch):
    """Logits of the files themselves, in their order."""
    base = resolve(str(path))
    params = load(base, outputs, jax.random.key(0))
    hidden = jax.jit(tiny.encoder(base.config).apply)(params["backbone"], {}, batch)
    return tiny.head(base.config, outputs).apply(params["head"], hidden, batch)


def test_a_merged_export_comes_back_as_it_left(tmp_path):
    first = step_zero.run_folder(tmp_path / "run", "mlp", "three", temperature=2.0)
    (out,) = exports.export(str(first), str(tmp_path / "out"), "merged")
    back = tmp_path / "back"
    assert cli.main(["import", f"--model={out}", f"--workdir={back}"]) == 0
    batch = step_zero.batch()
    got, wanted = (step_zero.logits(path, batch) for path in (back, first))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    opened = evaluation.open_fitted(str(back))
    assert opened.session.task == step_zero.TASKS["three"]
    assert opened.step == 0 and opened.session.settings.method == "head"
    assert opened.calibrator.temperature == 2.0
    texts = [("one", "two"), ("a longer one", "x")]
    for one, other in zip(*(said(path, texts) for path in (back, first)), strict=True):
        assert one["label"] == other["label"]
        assert one["probs"] == pytest.approx(other["probs"], abs=1e-5)
    (again,) = exports.export(str(back), str(tmp_path / "again"), "merged")
    np.testing.assert_allclose(of_file(again, 3, batch), wanted, rtol=0, atol=1e-5)


def said(path, texts):
    return hypelora_jax.load(str(path)).predict(texts)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_classifier_without_data_predicts_its_labels(family, tmp_path):
    model = save(tmp_path / "model", family=family)
    classifiers.import_classifier(model, str(tmp_path / "run"))
    batch = step_zero.batch()
    got = step_zero.logits(tmp_path / "run", batch)
    np.testing.assert_allclose(got, of_file(model, 3, batch), rtol=0, atol=1e-6)
    assert evaluation.open_fitted(str(tmp_path / "run")).session.task.labels == LABELS
    longest = families.of(resolve(model).config).max_tokens(resolve(model).config)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["data"]["max_length"] == longest == record["buckets"][-1]
    with pytest.raises(UserError, match="config.data.train is empty"):
        evaluation.evaluate(str(tmp_path / "run"))


def test_one_output_is_a_regression(tmp_path):
    model = save(tmp_path / "model", None, 1)
    classifiers.import_classifier(model, str(tmp_path / "run"))
    (answer,) = said(tmp_path / "run", ["A text."])
    assert set(answer) == {"label", "score"}
    task = evaluation.open_fitted(str(tmp_path / "run")).session.task
    assert task.labels == () and task.kind == "regression"
    wanted = "data are classes, and the model predicts a n.*set config.data.task=regr"
    with pytest.raises(UserError, match=wanted):
        config = from_dict(CONFIG | HEAD)
        classifiers.import_classifier(model, str(tmp_path / "other"), config)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("classifier") / "model")


@pytest.mark.parametrize("method", ["head", "lora", "hyper_mlp", "full"])
def test_every_method_starts_from_the_classifier(method, model, tmp_path):
    config = from_dict(CONFIG | {"method": method})
    classifiers.import_classifier(model, str(tmp_path), config)
    batch = step_zero.batch()
    got = step_zero.logits(tmp_path, batch)
    np.testing.assert_allclose(got, of_file(model, 3, batch), rtol=0, atol=1e-6)


def test_data_are_judged_in_the_order_of_the_outputs_and_trained_on(
    model, tmp_path, capsys
):
    config = from_dict(CONFIG | {"method": "lora"})
    run = str(tmp_path / "run")
    classifiers.import_classifier(model, run, config)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["data"]["classes"] == list(LABELS)
    metrics = evaluation.evaluate(run)
    held = predictions.read(tmp_path / "run" / "eval" / "validation/predictions.npz")
    table = load_corpus(config).splits["validation"]
    names = [sorted(LABELS)[y] for y in table.label]
    assert [LABELS[y] for y in held.labels] == names
    np.testing.assert_allclose(held.soft[:, [1, 2, 0]], table.soft)
    right = [
        LABELS[z.argmax()] == name for z, name in zip(held.logits, names, strict=True)
    ]
    assert metrics["accuracy"] == np.mean(right)
    assert cli.main(["train", f"--workdir={run}"]) == 0
    capsys.readouterr()
    trained = evaluation.open_fitted(run)
    assert trained.session.task.labels == LABELS
    (out,) = exports.export(run, str(tmp_path / "out"), "merged")
    fields = json.loads((out / "config.json").read_text())
    assert fields["id2label"] == dict(zip("012", LABELS, strict=True))


def test_paths_mean_the_same_in_any_folder(model, tmp_path, monkeypatch, capsys):
    rows = [f"a text of {i},{LABELS[i % 3]}" for i in range(60)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    shutil.copytree(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    flags = ["--config=files:method=head", "--config.data.train=train.csv"]
    flags += ["--config.optim.num_epochs=1", "--config.data.max_length=32"]
    assert cli.main(["import", "--model=model", "--workdir=run", *flags]) == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert cli.main(["evaluate", "--workdir=../run"]) == 0
    assert cli.main(["train", "--workdir=../run"]) == 0
    held = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert held["method"] == "head"


def test_an_over_confident_classifier_is_calibrated(tmp_path, capsys):
    """Its logits are 30 times too large; the oracle tests have a trained one."""
    model = save(tmp_path / "model")
    file = f"{model}/model.safetensors"
    tensors = load_file(file)
    for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
        tensors[name] = tensors[name] * 30
    save_file(tensors, file, metadata={"format": "pt"})
    run = tmp_path / "run"
    classifiers.import_classifier(model, str(run), from_dict(CONFIG | HEAD))
    assert cli.main(["calibrate", f"--workdir={run}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    before, after = (result[side]["nll"]["value"] for side in ("before", "after"))
    assert after < before - 0.1 and result["difference"]["nll"]["p"] < 0.01
    assert json.loads((run / "calibrator.json").read_text())["temperature"] > 2
    held = json.loads((run / "eval" / "validation" / "metrics.json").read_text())
    assert held["nll"] == pytest.approx(after)
    assert held["uncalibrated"]["nll"] == pytest.approx(before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "numbers 0, 2, 3, without 1;"),
        ({"id2label": {"0": "a", "1": "b"}}, r"2 labels \(id2label\) and the head 3"),
        ({"num_labels": 4}, r"3 labels \(id2label, num_labels=4\) and the head 3"),
        (
            {"id2label": None},
            r"2 labels \(num_labels\) and the head 3 outputs; expected",
        ),
        (
            {"id2label": None, "num_labels": 5},
            r"5 labels \(num_labels\) and the head 3",
        ),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "the label 'a' twice"),
        ({"id2label": {"0": "a", "1": "", "2": "b"}}, "the label '' in id2label"),
        (
            {"id2label": ["a", "b", "c"]},
            r'id2label=\["a", "b", "c"\]; expected an object',
        ),
        (
            {"problem_type": "multi_label_classification"},
            "problem_type='multi_label_classification' and 3 outputs; expected single",
        ),
        ({"problem_type": "regression"}, "'regression' and 3 outputs; expected single"),
        (
            {"architectures": ["RobertaForMultipleChoice"]},
            "RobertaForMultipleChoice.*; expected RobertaForSequenceClassification",
        ),
    ],
)
def test_a_config_that_contradicts_the_head_is_refused(fields, message, tmp_path):
    model = save(tmp_path / "model", **fields)
    with pytest.raises(UserError, match=message) as error:
        classifiers.import_classifier(model, str(tmp_path / "run"))
    assert "\n" not in str(error.value)


def spoiled(path, without=(), **more):
    """The classifier with tensors taken out and others added."""
    model = save(path)
    file = f"{model}/model.safetensors"
    tensors = {n: x for n, x in load_file(file).items() if not n.startswith(without)}
    save_file(tensors | more, file, metadata={"format": "pt"})
    return model


def test_files_of_other_models_are_refused(tmp_path):
    def refused(model, message, config=None):
        with pytest.raises(UserError, match=message) as error:
            classifiers.import_classifier(model, str(tmp_path / "run"), config)
        assert "\n" not in str(error.value)

    bare = spoiled(tmp_path / "bare", "classifier.")
    refused(bare, r"no classification head \(classifier.out_proj.weight is missing\)")
    half = spoiled(tmp_path / "half", "classifier.dense.")
    refused(half, r"no classification head \(classifier.dense.weight is missing\)")
    more = spoiled(tmp_path / "more", score=np.zeros(3, np.float32))
    refused(more, "unknown tensor 'score'")
    refused("random:tiny", "random:tiny has random weights; expected a folder")
    refused("minilm", r"no classification head \(classifier.weight is missing\)")


def test_configs_that_do_not_start_from_the_classifier_are_refused(model, tmp_path):
    def refused(message, **sections):
        config = from_dict(CONFIG | {"method": "hyper_mlp"} | sections)
        with pytest.raises(UserError, match=message) as error:
            classifiers.import_classifier(model, str(tmp_path / "run"), config)
        assert "\n" not in str(error.value)

    refused("num_seeds=2 asks for several models, .*; leave it out$", num_seeds=2)
    kind = {"kind": "deep_ensemble"}  # it has to be trained
    refused("kind=deep_ensemble averages .*; leave it out$", uncertainty=kind)
    kind = {"kind": "mc_dropout"}
    refused("leave it out, and run .* --kind=mc_dropout", uncertainty=kind)
    refused("kind is 'no_such'; expected one of none", uncertainty={"kind": "no_such"})
    refused("hyper.init=reference starts with an", hyper={"init": "reference"})
    blend = {"b": "add", "b_init": "lora", "alpha": 0.5}
    refused("blend.b_init=lora starts with an adapter", blend=blend)
    refused(
        "kind is 'regression', but .* of kind 'classes'; leave",
        head={"kind": "regression"},
    )
    others = DATA | {"num_classes": 5}
    refused("classes of the data are class_b, .*, the labels of the model", data=others)


def test_the_task_that_fits_the_model_is_named():
    classifier_labels.check_kind((), ())
    classifier_labels.check_kind(NAMES, ("neg", "pos"))
    with pytest.raises(UserError, match=r"numbers, .* a class; .*task=classification;"):
        classifier_labels.check_kind(NAMES, ())
    with pytest.raises(UserError, match=r"classes, .* a number; .*task=regression;"):
        classifier_labels.check_kind((), ("0.5", "1.5"))


def test_the_command_wants_one_of_both(model, tmp_path, capsys):
    def refused(message, *flags):
        assert cli.main(["import", f"--workdir={tmp_path}/run", *flags]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

    refused("neither --adapter nor --model; expected --adapter=DIR")
    refused("--factors=x.npz is of an adapter", f"--model={model}", "--factors=x.npz")


NAMES = ("neg", "neu", "pos")


@pytest.mark.parametrize(
    ("labels", "found", "wanted"),
    [
        (NAMES, ("neg", "neu", "pos"), NAMES),
        (("pos", "neg", "neu"), NAMES, ("pos", "neg", "neu")),
        (NAMES, ("neg", "pos"), NAMES),  # the data lacks one
        (NAMES, ("0", "1", "2"), ("0", "1", "2")),
        (NAMES, ("0", "2"), ("0", "1", "2")),
        (("POS", "Neg", "neu"), NAMES, ("pos", "neg", "neu")),
        (("POS", "Neg", "neu"), ("neg", "pos"), ("pos", "neg", "neu")),
        (("LABEL_0", "LABEL_1", "LABEL_2"), NAMES, NAMES),
    ],
)
def test_names_of_the_data_for_labels(labels, found, wanted, caplog):
    assert classifier_labels.of_data(labels, found) == wanted
    guessed = labels[0] == "LABEL_0"
    assert ("LABEL_0 = neg, LABEL_1 = neu" in caplog.text) is guessed


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (NAMES, ("bad", "good")),
        (NAMES, ("neg", "neu", "pos", "other")),
        (NAMES, ("0", "3")),
        (("a", "A", "b"), ("A", "B")),  # case decides here
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("neg", "pos")),
    ],
)
def test_other_names_are_refused(labels, found):
    with pytest.raises(UserError, match="expected the same names, or their numbers"):
        classifier_labels.of_data(labels, found)
