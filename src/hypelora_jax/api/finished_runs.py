"""Finished runs in Python: they answer texts, and write adapters of new tasks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hypelora_jax.data import buckets
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.exchange import described
from hypelora_jax.exchange.described import Described
from hypelora_jax.inference import predictor
from hypelora_jax.inference.answers import Fields
from hypelora_jax.inference.predictor import Predictor
from hypelora_jax.inference.texts import Text


class TaskAdapter(NamedTuple):
    """The adapter of a described task, in memory; made by `FinishedRun.adapter`."""

    made: Described
    predictor: Predictor

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.made.labels

    @property
    def nearest(self) -> str:
        """Name of the training task with the description nearest to the condition."""
        return self.made.near.nearest

    @property
    def distance(self) -> float:
        """1 minus the cosine of the condition and that description, 0 to 2.

        Confidence has been measured near training descriptions. Far from all of them
        nothing is known about it.
        """
        return self.made.near.distance

    @property
    def tuned(self) -> dict[str, Any]:
        """What the examples changed, and the `loss` before and after; {} without."""
        return self.made.tuned

    def predict(self, texts: Sequence[Text]) -> list[Fields]:
        """Answer texts as a loaded run does, with `label`, `confidence` and `probs`."""
        return self.predictor.predict(texts)

    def save(self, output: str) -> dict[str, Any]:
        """Write the adapter as a run folder, as `hypelora adapt` does.

        Raises:
          UserError: the folder is not empty, or cannot be written.
        """
        return described.save(self.made, output)


class FinishedRun(Predictor):
    """A finished run, loaded once; made by `load`.

    Besides `predict` and `warm` it has `adapter`, if its network reads descriptions.
    """

    __slots__ = ()

    def adapter(
        self,
        description: str,
        labels: Sequence[str] = (),
        examples: str = "",
        tune: str = "",
    ) -> TaskAdapter:
        """Return the adapter that this run writes for a new task, without a folder.

        Args:
          description: what the task asks, in words like those of training.
          labels: names of the classes; () takes those of the run. With
            head.kind=label_text they may be new ones.
          examples: a file of 8 or more labelled rows that tune the adapter, or "".
          tune: what they change: "condition", the default, or "temperature".

        Raises:
          UserError: the run reads no descriptions, something does not fit, or the run
            was loaded with `coverage`, for which a new task has no calibration split.
        """
        if self.threshold is not None:
            raise UserError(
                "the run was loaded with coverage, but sets need a calibration split, "
                "which a new task does not have; load it without"
            )
        made = described.described(self.fitted, description, labels, examples, tune)
        session = made.fitted.session
        edges = buckets.extended(session.edges, session.settings.data.max_length)
        answerers = {
            rows: evaluation.answerer(made.fitted, edges, rows)
            for rows in self.answerers
        }
        return TaskAdapter(
            made, Predictor(made.fitted, answerers, edges, None, self.abstain)
        )


def load(
    workdir: str,
    coverage: float | None = None,
    sets: str = "thr",
    by_class: bool = False,
    abstain: float | None = None,
    batch_sizes: Sequence[int] = (),
) -> FinishedRun:
    """Load a finished run to predict with its calibrator and kind of uncertainty.

    Args:
      workdir: folder of a trained, imported or adapted run.
      coverage: add conformal sets that contain the right class this often, such as 0.9.
      sets: kind of the sets: thr, aps or raps.
      by_class: calibrate the sets class by class.
      abstain: give no label if the confidence is below this.
      batch_sizes: rows of the compiled batches, rounded up to a multiple of the
        devices; a question uses the smallest that fits it. () uses the run's own size.

    Raises:
      UserError: the run does not exist, or it predicts a number, for which there are
        no conformal sets and no abstention.
    """
    own = (coverage, sets, by_class, abstain, batch_sizes)
    return FinishedRun(*predictor.load(workdir, *own))
