"""Adapters made on demand: questions that describe or name their task."""

import concurrent.futures
import json
import time

import flips
import jax
import numpy as np
import pytest
import serving

import hypelora_jax
from hypelora_jax import cli
from hypelora_jax.calibration import calibrators
from hypelora_jax.exchange import described
from hypelora_jax.inference import asked_tasks, task_adapters
from hypelora_jax.inference.asked_tasks import AskedTask
from hypelora_jax.inference.task_adapters import TaskAdapters
from hypelora_jax.run import calibrator
from hypelora_jax.run.paths import Run
from hypelora_jax.serve import adapter_pool, server
from hypelora_jax.serve.limits import Limits
from hypelora_jax.train.conditioning import text_encoder

TEXTS = ["the good film", "a bad song", "one good the", "film bad one"]
ASKS, DENIES = "Say yes if it is good.", "Is it not good?"
NEW = ["Is the song good or not?", "Хорошо ли это? 好吗？", "x"]
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if event == server.COMPILED else None
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the flip problem, so warm that no probability is 0 or 1."""
    run = flips.trained(tmp_path_factory.mktemp("flip"))
    calibrator.write(Run.open(run), calibrators.Temperature(20.0))
    return str(run)


@pytest.fixture(scope="module")
def port(run):
    """A service whose bank has room for two adapters."""
    pool = adapter_pool.open_pool([run], batch_sizes=(8,))
    with serving.running(pool, server.Batching(8, max_loras=2), Limits()) as port:
        yield port


def ask(port, **question):
    status, got = serving.ask(port, question)
    assert status == 200, got
    return got


def equal(got, wanted):
    assert got["label"] == wanted["label"]
    assert got["probs"] == pytest.approx(wanted["probs"], abs=1e-5)


def test_the_description_decides_and_its_opposite_flips(port):
    for text, good in zip(TEXTS, (True, False, True, False), strict=True):
        own = ask(port, text=text, description=ASKS)
        other = ask(port, text=text, description=DENIES)
        assert own["label"] == ("yes" if good else "no")
        assert own["confidence"] < 0.999
        assert other["label"] == ("no" if good else "yes")
        assert (own["nearest"], other["nearest"]) == ("asks", "denies")
        assert own["distance"] == pytest.approx(0, abs=1e-6)
        named = ask(port, text=text, task="asks")
        assert named["label"] == own["label"] and named["distance"] == 0
    far = ask(port, text="a", description=NEW[0])
    assert 0 < far["distance"] <= 2 and far["nearest"] in flips.DESCRIPTIONS


@pytest.mark.soak
def test_answers_are_those_of_adapt_and_of_predict(run, port, tmp_path, capsys):
    rows = [{"text": t, "description": d} for t in TEXTS for d in (DENIES, NEW[1])]
    rows += [{"text": t, "task": "denies", "labels": "of the user"} for t in TEXTS]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert cli.main(["predict", f"--workdir={run}", f"--input={path}"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, got in zip(rows, found, strict=True):
        said = {name: x for name, x in row.items() if name != "labels"}
        wanted = ask(port, **said)
        equal(got, wanted)
        assert got.items() >= row.items()
        assert got["nearest"] == wanted["nearest"]
        assert got["distance"] == pytest.approx(wanted["distance"], abs=1e-6)
    described.adapt(run, str(tmp_path / "adapter"), NEW[1])
    for got, wanted in zip(
        found[1:8:2],
        hypelora_jax.load(str(tmp_path / "adapter")).predict(TEXTS),
        strict=True,
    ):
        equal(got, wanted)


def test_a_mixed_batch_equals_one_at_a_time(port):
    questions = [
        {"text": text, **said}
        for text in TEXTS
        for said in (
            *({"description": d} for d in (ASKS, DENIES, *NEW)),
            {"task": "denies"},
            {"description": f"  {ASKS}\n", "labels": ["yes", "no"]},
        )
    ]
    status, together = serving.ask(port, questions)
    assert status == 200
    assert {one["label"] for one in together[:2]} == {"no", "yes"}
    # backwards, so that other adapters are in the bank
    for got, question in list(zip(together, questions, strict=True))[::-1]:
        alone = ask(port, **question)
        equal(got, alone)
        assert list(got["probs"]) == ["no", "yes"]
    np.testing.assert_allclose(
        [x["probs"]["yes"] for x in together[::7]],
        [x["probs"]["yes"] for x in together[6::7]],
        atol=1e-5,
    )


def test_an_adapter_that_left_the_bank_is_made_again(port):
    """Of three adapters in two slots; nothing is compiled, whatever is asked."""
    first = ask(port, text=TEXTS[0], description=ASKS)
    COMPILED.clear()
    for description in (DENIES, *NEW, "y " * 40, "z " * 300):
        ask(port, text=TEXTS[0], description=description)
    again = ask(port, text=TEXTS[0], description=ASKS)
    assert again == first and COMPILED == []


def test_a_description_that_is_embedded_blocks_no_other(port, monkeypatch):
    ask(port, text="a", description=ASKS)
    embed, began = text_encoder.embed, []

    def slow(*args):
        began.append(time.monotonic())
        time.sleep(1.5)
        return embed(*args)

    monkeypatch.setattr(text_encoder, "embed", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as clients:
        new = [
            clients.submit(ask, port, text="a", description="Is it new?")
            for _ in range(2)
        ]
        while not began:
            time.sleep(0.01)
        ask(port, text="a", description=ASKS)
        ask(port, text="a", task="denies")
        assert not any(one.done() for one in new)
        assert new[0].result() == new[1].result()
    assert len(began) == 1, "the second asked for the same"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "does not say its task; expected description, a text, or task, one of"),
        ({"description": ""}, "does not say its task"),
        ({"description": " \n"}, "expected a text that is not empty"),
        ({"description": 3}, "body.description"),
        ({"description": ["A?"]}, "body.description"),
        ({"description": "\ud800"}, "expected whole characters"),
        ({"description": "x" * 10_001}, "10001 characters; expected at most 10000"),
        ({"description": "x" * 100_000}, "100000 characters; expected at most 10000"),
        ({"task": "other"}, "there is no task 'other'; expected description"),
        ({"task": "\ud800"}, "there is no task"),
        ({"description": "A?", "task": "asks"}, "expected one of them"),
        ({"description": "A?", "labels": ["a", "b"]}, "answers no, yes; expected"),
        ({"description": "A?", "labels": ["yes", "yes"]}, "answers no, yes; expected"),
        ({"description": "A?", "labels": ["yes", " "]}, "expected a list of names"),
        ({"description": "A?", "labels": ["yes", "x" * 999]}, "999 characters"),
        ({"description": "A?", "labels": "yes,no"}, "body.labels"),
        ({"task": "asks", "labels": ["a", "b"]}, "answers no, yes; expected"),
        ({"condition": [1.0, 2.0]}, "the condition has shape"),
    ],
)
def test_what_says_no_task_is_refused_with_a_line(port, said, words):
    status, got = serving.ask(port, {"text": "a", **said})
    assert status in (413, 422), got
    assert words in got["error"] and "\n" not in got["error"]


def test_a_vector_of_a_description_is_answered_as_the_description(port):
    encoder = flips.FLAGS[4].partition("=")[2]
    vector = text_encoder.embed(encoder, [NEW[0]])[0].tolist()
    wanted = ask(port, text=TEXTS[0], description=NEW[0])
    got = ask(port, text=TEXTS[0], condition=vector)
    equal(got, wanted)
    assert got["distance"] == pytest.approx(wanted["distance"], abs=1e-6)


def test_the_list_of_adapters_says_what_may_be_asked(port):
    (one,) = json.loads(serving.call(port, "GET", "/adapters")[2])
    assert one["tasks"] == ["asks", "denies"]
    assert one["describes"] and not one["names_labels"]


@pytest.mark.soak
def test_rows_without_a_task_are_named_and_tables_have_columns(run, tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    argv = ["predict", f"--workdir={run}", f"--input={path}", f"--output={out}"]
    path.write_text(f"text,description\na good film,{ASKS}\na bad film,\n")
    assert cli.main(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "input line 3" in line and "it does not say its task" in line
    assert cli.main([*argv, "--on-error=skip"]) == 0
    header, row = out.read_text().splitlines()
    assert header.endswith(",prob_no,prob_yes,nearest,distance")
    assert row.split(",")[2] == "yes" and row.split(",")[6] == "asks"
    path.write_text("text\na good film\n")
    assert cli.main(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "none of the columns description, task, condition" in line


def test_known_tasks_are_forgotten_before_memory_ends(run, monkeypatch):
    monkeypatch.setattr(task_adapters, "KEPT", 3)
    model = hypelora_jax.load(run)
    adapters = TaskAdapters(model, 2)
    first = adapters.entry(AskedTask("0"))
    assert adapters.entry(AskedTask("0")) is first
    for i in range(1, 4):
        adapters.entry(AskedTask(str(i)))
    assert adapters.known(AskedTask("0")) is None
    assert adapters.known(AskedTask("3")) is not None
    cells = {"description": " A? ", "labels": ["yes", "no"]}
    assert model.tasks.asked(cells) == AskedTask("A?")
    assert asked_tasks.LABELS >= 2
