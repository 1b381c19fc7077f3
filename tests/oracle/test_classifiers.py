"""Classifiers that transformers trained and saved, imported as runs."""

import json

import numpy as np
import pytest
import step_zero
import torch
import transformers
from oracle import folders
from oracle.test_transformers import make_batch, run_torch

import hypelora_jax
from hypelora_jax import families
from hypelora_jax.config.settings import from_dict
from hypelora_jax.data import tokens
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation, recalibration
from hypelora_jax.exchange import classifiers
from hypelora_jax.run import predictions
from hypelora_jax.train.session import load_corpus

LABELS = ("neutral", "bad", "good")
AUTO = transformers.AutoModelForSequenceClassification
LENGTHS = (20, 3, 11, 1, 24, 8, 8, 2)  # a row for each of the tests' devices


@pytest.mark.parametrize("family", folders.CLASSES)
def test_logits_and_labels_are_those_of_transformers(family, tmp_path):
    named = {"id2label": dict(enumerate(LABELS))}
    model = folders.save(family, tmp_path / "model", **named)
    classifiers.import_classifier(model, str(tmp_path / "run"))
    batch = make_batch(evaluation_config(tmp_path / "run"), LENGTHS, 24)
    theirs = AUTO.from_pretrained(model)
    wanted = run_torch(theirs, batch).logits.numpy()
    got = step_zero.logits(tmp_path / "run", batch)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    assert np.abs(wanted).max() > 0.05, "logits that say something"
    (answer,) = hypelora_jax.load(str(tmp_path / "run")).predict(["the film"])
    assert tuple(answer["probs"]) == LABELS == tuple(theirs.config.id2label.values())


def evaluation_config(run):
    return evaluation.open_fitted(str(run)).session.base.config


@pytest.mark.parametrize("family", folders.CLASSES)
def test_one_output_is_a_number(family, tmp_path):
    model = folders.save(family, tmp_path / "model", num_labels=1)
    classifiers.import_classifier(model, str(tmp_path / "run"))
    batch = make_batch(evaluation_config(tmp_path / "run"), LENGTHS, 24)
    wanted = run_torch(AUTO.from_pretrained(model), batch).logits.numpy()
    got = step_zero.logits(tmp_path / "run", batch)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "kind", "message"),
    [
        ("bert", "Model", "no classification head"),
        ("roberta", "ForMaskedLM", "no classification head"),
        ("distilbert", "ForTokenClassification", "no classification head"),
        ("roberta", "ForTokenClassification", "no classification head"),
        ("bert", "ForMultipleChoice", "architectures=.*BertForMultipleChoice"),
        ("bert", "ForSequenceClassification", "multi_label_classification"),
    ],
)
def test_other_models_of_transformers_are_refused(family, kind, message, tmp_path):
    problem = {"problem_type": "multi_label_classification"}
    options = problem if message == problem["problem_type"] else {}
    folders.build(family, kind, **options).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=message) as error:
        classifiers.import_classifier(str(tmp_path / "model"), str(tmp_path / "run"))
    assert "\n" not in str(error.value)


# Four classes, and labels drawn by chance: 256 texts leave much to learn by heart.
DATA = {"source": "synthetic", "num_classes": 4, "num_examples": 1024}
DATA |= {"max_examples": 256, "max_length": 64}


def encoded(own, table):
    """Token ids, masks and labels of a table, as torch takes them."""
    ids = own.encode(table, DATA["max_length"]).ids
    width = max(map(len, ids))
    padded = np.stack([np.pad(x, (0, width - len(x)), constant_values=1) for x in ids])
    mask = np.stack([np.arange(width) < len(x) for x in ids])
    return {
        "input_ids": torch.from_numpy(padded).long(),
        "attention_mask": torch.from_numpy(mask).long(),
        "labels": torch.from_numpy(table.label).long(),
    }


def fine_tuned(folder, corpus, epochs=40):
    """A small RoBERTa that torch trained until it is sure of every training text."""
    roles = families.FAMILIES["roberta"].tokens
    own = tokens.tokenizer(None, roles, 1)
    labels = dict(enumerate(corpus.task.labels))
    sizes = folders.XLM_ROBERTA | {"vocab_size": own.vocab_size}
    sizes |= {"max_position_embeddings": DATA["max_length"] + 2}
    torch.manual_seed(0)
    model = transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**sizes, id2label=labels, hidden_dropout_prob=0)
    )
    rows, optimizer = encoded(own, corpus.splits["train"]), torch.optim.AdamW
    optimizer = optimizer(model.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products are slower with more
    for _ in range(epochs):
        for part in torch.randperm(len(rows["labels"])).split(32):
            model(**{n: x[part] for n, x in rows.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    for name, text in tokens.hugging_face_files(own, roles, 64).items():
        (folder / name).write_text(text)
    with torch.no_grad():
        held_out = model(**encoded(own, corpus.splits["validation"])).logits
    return held_out.numpy()


def test_an_over_confident_classifier_is_better_after_calibration(tmp_path):
    settings = from_dict({"method": "head", "data": DATA})
    corpus = load_corpus(settings)
    wanted = fine_tuned(tmp_path / "model", corpus)
    run = str(tmp_path / "run")
    classifiers.import_classifier(str(tmp_path / "model"), run, settings)
    evaluation.evaluate(run, "validation")
    held = predictions.read(tmp_path / "run" / "eval" / "validation/predictions.npz")
    np.testing.assert_array_equal(held.labels, corpus.splits["validation"].label)
    np.testing.assert_allclose(held.logits, wanted, rtol=0, atol=1e-4)
    result = recalibration.calibrate(run)
    state = json.loads((tmp_path / "run" / "calibrator.json").read_text())
    assert state["temperature"] > 1.5, "it was too sure"
    change = result["difference"]["nll"]
    assert change["high"] < 0 and change["p"] < 0.05
    assert result["after"]["ece"]["value"] < result["before"]["ece"]["value"]
