"""Tasks, which say what is predicted and how it is scored, and the nine GLUE tasks."""

from typing import NamedTuple

from hypelora_jax.errors import choose


class Task(NamedTuple):
    """What a corpus asks for.

    `kind` is the name of its objective, a key of `objectives.OBJECTIVES`; `labels` are
    the names of the classes in the order of their ids, () if numbers are predicted;
    `metrics` are task scores, keys of `calibration.metrics.scores.SCORES`; `pair` is
    True if an example has two texts; `condition` is the width C of the vector that each
    example is conditioned on, or 0 without conditions; `tasks` is the number of tasks
    of a set, and `label_width` that of the embeddings of their label names, if any.
    `classes` is the number of classes of each task of a set, () if all have as many.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    pair: bool
    condition: int = 0
    tasks: int = 0
    label_width: int = 0
    classes: tuple[int, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Width Y of the logits: the number of classes, or 1 for a number."""
        return len(self.labels) or 1


class TaskSet(NamedTuple):
    """K tasks that one network learns together, in the order of their file.

    A row of a table names its task by index. `labels` are the names of the classes of
    each task in the order of their ids; `held_out` are tasks that do not train.
    `paraphrases` and `negations` are descriptions for an audit alone: other words for
    the same task, and the opposite task. `adapters` are folders of peft adapters that
    were trained on the tasks, "" for a task without one.
    """

    names: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]  # one or more texts of each
    labels: tuple[tuple[str, ...], ...]
    held_out: tuple[bool, ...]
    weights: tuple[float, ...]
    paraphrases: tuple[tuple[str, ...], ...] = ()  # () or one entry a task
    negations: tuple[tuple[str, ...], ...] = ()
    adapters: tuple[str, ...] = ()

    def number(self, name: str) -> int:
        """Return the index of a task.

        Raises:
          UserError: there is no such task.
        """
        known = {own: i for i, own in enumerate(self.names)}
        return choose(known, name, "task")


class GlueTask(NamedTuple):
    """A GLUE task and its names in the TSV files and in TFDS.

    `columns` are the text columns of the TSV files, `features` those of TFDS in the
    same order; `splits` maps a split to (TSV file, TFDS split). `header` has the column
    names of the files without a header line, which are all but the test file; it is ()
    if every file has a header line.
    """

    task: Task
    folder: str
    config: str
    columns: tuple[str, ...]
    label: str
    features: tuple[str, ...]
    splits: dict[str, tuple[str, str]]
    header: tuple[str, ...] = ()


_SPLITS = {
    "train": ("train.tsv", "train"),
    "validation": ("dev.tsv", "validation"),
    "test": ("test.tsv", "test"),
}
_MNLI_SPLITS = {
    "train": ("train.tsv", "train"),
    "validation": ("dev_matched.tsv", "validation_matched"),
    "validation_mismatched": ("dev_mismatched.tsv", "validation_mismatched"),
    "test": ("test_matched.tsv", "test_matched"),
    "test_mismatched": ("test_mismatched.tsv", "test_mismatched"),
}
_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")


def _glue(
    name: str,
    folder: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    columns: tuple[str, ...],
    label: str = "label",
    features: tuple[str, ...] | None = None,
    splits: dict[str, tuple[str, str]] = _SPLITS,
    header: tuple[str, ...] = (),
) -> GlueTask:
    kind = "classification" if labels else "regression"
    task = Task(name, kind, labels, metrics, len(columns) == 2)
    features = features or columns
    return GlueTask(task, folder, name, columns, label, features, splits, header)


# Classes are in the order of TFDS and the hub, because the order gives their ids.
GLUE = {
    g.task.name: g
    for g in (
        _glue(
            "cola",
            "CoLA",
            ("unacceptable", "acceptable"),
            ("mcc",),
            ("sentence",),
            label="is_acceptable",
            header=("", "is_acceptable", "", "sentence"),
        ),
        _glue("sst2", "SST-2", ("negative", "positive"), ("accuracy",), ("sentence",)),
        _glue("qnli", "QNLI", _ENTAILMENT, ("accuracy",), ("question", "sentence")),
        _glue("rte", "RTE", _ENTAILMENT, ("accuracy",), _SENTENCES),
        _glue("wnli", "WNLI", _ENTAILMENT[::-1], ("accuracy",), _SENTENCES),
        _glue(
            "mrpc",
            "MRPC",
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            ("#1 String", "#2 String"),
            label="Quality",
            features=_SENTENCES,
        ),
        _glue(
            "qqp",
            "QQP",
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            ("question1", "question2"),
            label="is_duplicate",
        ),
        _glue(
            "mnli",
            "MNLI",
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            _SENTENCES,
            label="gold_label",
            features=("premise", "hypothesis"),
            splits=_MNLI_SPLITS,
        ),
        _glue("stsb", "STS-B", (), ("pearson", "spearman"), _SENTENCES, label="score"),
    )
}


def glue_task(name: str) -> GlueTask:
    """Return the GLUE task with this name.

    Raises:
      UserError: there is no such task.
    """
    return choose(GLUE, name, "data.task")


def unnamed(outputs: int, name: str = "unnamed") -> Task:
    """Make a task for a model whose number of outputs is all that is known.

    One output makes a regression; more make a classification with the classes LABEL_0,
    LABEL_1, ...
    """
    if outputs == 1:
        return Task(name, "regression", (), ("pearson", "spearman"), False)
    labels = tuple(f"LABEL_{i}" for i in range(outputs))
    return Task(name, "classification", labels, ("accuracy",), False)
