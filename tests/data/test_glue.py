import corpora
import numpy as np
import pytest
from corpora import write_glue

from hypelora_jax import files
from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import sources
from hypelora_jax.data.tasks import GLUE
from hypelora_jax.errors import UserError


def config(folder, name, **more):
    return DataConfig(source="glue_dir", task=name, dir=str(folder), **more)


@pytest.mark.parametrize("name", GLUE)
def test_every_task_loads_from_official_layout(tmp_path, name):
    write_glue(tmp_path, name)
    corpus = sources.load(config(tmp_path, name), seed=0)
    splits = corpus.splits
    assert corpus.task == GLUE[name].task
    assert set(splits) == {*GLUE[name].splits, "calibration"}
    assert len(splits["train"].ids) + len(splits["calibration"].ids) == 40
    for split in ("train", "calibration", "validation"):
        label = splits[split].label
        if corpus.task.kind == "regression":
            assert label.dtype == np.float32 and set(label) == {0.5, 3.25}
        else:
            assert label.dtype == np.int32
            assert set(label) == set(range(corpus.task.num_outputs))
    hidden = splits["test"].label
    none = np.isnan(hidden) if corpus.task.kind == "regression" else hidden == -1
    assert none.all()
    assert (splits["train"].text_b is not None) == corpus.task.pair


def test_metrics_and_outputs_of_the_tasks():
    metrics = {name: g.task.metrics for name, g in GLUE.items()}
    assert metrics == {
        "cola": ("mcc",),
        "sst2": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "stsb": ("pearson", "spearman"),
    }
    # the ids of TFDS and the hub: WNLI's are the other way round
    assert GLUE["rte"].task.labels == ("entailment", "not_entailment")
    assert GLUE["wnli"].task.labels == ("not_entailment", "entailment")
    outputs = {name: g.task.num_outputs for name, g in GLUE.items()}
    assert outputs["mnli"] == 3 and outputs["stsb"] == 1 and outputs["cola"] == 2


def test_quotes_and_row_numbers_are_kept(tmp_path):
    write_glue(tmp_path, "cola")
    table = sources.load(config(tmp_path, "cola"), seed=0).splits["validation"]
    assert table.text[1] == 'say "1 again' and table.label[1] == 1
    np.testing.assert_array_equal(table.ids, np.arange(6))


def test_short_rows_are_left_out_as_in_tfds(tmp_path, caplog):
    write_glue(tmp_path, "qqp")
    path = tmp_path / "QQP" / "dev.tsv"
    path.write_text(path.read_text() + "99\tbroken\n" + "7\tonly one\t\t1\n")
    table = sources.load(config(tmp_path, "qqp"), seed=0).splits["validation"]
    assert len(table.ids) == 7 and table.text_b[-1] == ""
    assert "left out 1 rows" in caplog.text


def test_no_train_file_fails_only_when_train_is_needed(tmp_path):
    write_glue(tmp_path, "qnli")
    (tmp_path / "QNLI" / "train.tsv").unlink()
    splits = sources.load(config(tmp_path, "qnli"), seed=0).splits
    assert len(splits["validation"].ids) == 6
    with pytest.raises(UserError, match="no split 'train', only validation, test"):
        splits["train"]


def break_label(path):
    path.write_text(path.read_text().replace("gj04\t1", "gj04\t2", 1))


def break_text(path):
    path.write_text(path.read_text().replace('say "0 again', " ", 1))


def break_bytes(path):
    path.write_bytes(path.read_bytes().replace(b"again", b"ag\xff", 1))


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (
            break_label,
            r"dev.tsv:2: label '2'; expected one of unacceptable, acceptable",
        ),
        (break_text, r"dev.tsv:1: the text is empty"),
        (break_bytes, r"dev.tsv: byte 0xff in line 1 is not UTF-8"),
        (lambda path: path.write_text(""), r"dev.tsv is empty"),
    ],
)
def test_bad_glue_files_are_refused(tmp_path, breaks, message):
    write_glue(tmp_path, "cola")
    breaks(tmp_path / "CoLA" / "dev.tsv")
    with pytest.raises(UserError, match=message) as error:
        sources.load(config(tmp_path, "cola"), seed=0)
    assert "\n" not in str(error.value)


def test_bad_glue_rows_can_be_skipped(tmp_path, caplog):
    write_glue(tmp_path, "cola")
    break_label(tmp_path / "CoLA" / "dev.tsv")
    break_text(tmp_path / "CoLA" / "dev.tsv")
    corpus = sources.load(config(tmp_path, "cola", on_bad_row="skip"), seed=0)
    np.testing.assert_array_equal(corpus.splits["validation"].ids, [2, 3, 4, 5])
    assert caplog.text.count("skipped 2 bad rows") == 1


def test_missing_column_folder_and_task(tmp_path):
    write_glue(tmp_path, "rte")
    path = tmp_path / "RTE" / "dev.tsv"
    path.write_text(path.read_text().replace("sentence2", "other", 1))
    with pytest.raises(UserError, match="no column 'sentence2'; it has index, sente"):
        sources.load(config(tmp_path, "rte"), seed=0)
    with pytest.raises(UserError, match="has no folder CoLA"):
        sources.load(config(tmp_path, "cola"), seed=0)
    with pytest.raises(UserError, match="task is 'nope'; expected one of cola, sst2"):
        sources.load(config(tmp_path, "nope"), seed=0)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    for name in ("rte", "stsb", "mnli"):
        write_glue(tmp_path / "raw", name)
    return corpora.tfds(monkeypatch, tmp_path / "raw")


def by_tfds(folder, name):
    return DataConfig(source="tfds", task=name, dir=str(folder / "tfds"))


@pytest.mark.parametrize("name", ["rte", "stsb", "mnli"])
def test_tfds_runs_its_own_builder(tmp_path, downloads, capsys, name):
    wanted = by_tfds(tmp_path, name)
    with files.offline(), pytest.raises(UserError, match="run `hypelora prepare`"):
        sources.load(wanted, seed=0)
    assert downloads == []
    ours = sources.load(config(tmp_path / "raw", name), seed=0)
    theirs = sources.load(wanted, seed=0)
    assert ours.task == theirs.task and set(ours.splits) == set(theirs.splits)
    for split, table in ours.splits.items():
        for left, right in zip(table, theirs.splits[split], strict=True):
            np.testing.assert_array_equal(left, right)
    assert len(downloads) == 1
    with files.offline():
        assert "tfds" in sources.prepare(wanted)
        sources.load(wanted, seed=0)
    assert len(downloads) == 1, "prepared once, by whoever comes first"
    out, err = capsys.readouterr()
    assert out == "" and "Generating train examples" in err


@pytest.mark.parametrize(
    "fault", [OSError("no route\nto host"), KeyboardInterrupt("in the middle")]
)
def test_what_tfds_did_not_finish_is_not_there(tmp_path, downloads, fault):
    wanted = by_tfds(tmp_path, "rte")
    downloads.append(fault)
    with pytest.raises((UserError, KeyboardInterrupt)) as error:
        sources.load(wanted, seed=0)
    if isinstance(error.value, UserError):
        assert "(OSError: no route to host); expected a download" in str(error.value)
    with files.offline(), pytest.raises(UserError, match="glue/rte is not in"):
        sources.load(wanted, seed=0)
    assert len(sources.load(wanted, seed=0).splits["validation"].ids) == 6


def test_rows_that_fail_half_way_leave_no_dataset(tmp_path, downloads):
    """TFDS has written the first splits when the last one's file turns out bad."""
    path = tmp_path / "raw" / "RTE" / "test.tsv"
    text = path.read_text()
    path.write_text(text.replace("sentence2", "other", 1))
    wanted = by_tfds(tmp_path, "rte")
    with pytest.raises(UserError, match="preparing glue/rte failed .KeyError"):
        sources.load(wanted, seed=0)
    with files.offline(), pytest.raises(UserError, match="glue/rte is not in"):
        sources.load(wanted, seed=0)
    path.write_text(text)
    assert len(sources.load(wanted, seed=0).splits["test"].ids) == 6
