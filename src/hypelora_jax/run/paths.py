"""A run is a folder; this module gives the path of each of its files."""

import dataclasses
import uuid
from collections.abc import Sequence

from etils import epath

from hypelora_jax import files
from hypelora_jax.errors import UserError

# Files of a checkpoint:
MANIFEST = "manifest.json"  # checksums of the other files
SELECTION = "selection.json"  # scores of the checkpoint's epoch
COMMITTED = "commit_success.txt"  # orbax adds it after the manifest


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder of a run; the path may be gs://..."""

    path: epath.Path

    @classmethod
    def open(cls, workdir: epath.PathLike) -> "Run":
        """Return the run of a folder, which need not exist, with its absolute path.

        Raises:
          UserError: the path is empty, an address, or has a backslash.
        """
        path = files.absolute(workdir, "workdir")
        # Tensorstore, which writes the arrays of checkpoints, reads it as a slash.
        if any("\\" in part for part in path.parts[1:]):
            raise UserError(
                f"workdir {path} has a backslash, which checkpoints cannot have in "
                "their path; expected a folder without. Rename it"
            )
        return cls(path)

    @classmethod
    def create(cls, workdir: epath.PathLike) -> "Run":
        """Return the run of a folder, which is created if it does not exist.

        Raises:
          UserError: the folder cannot be created or written.
        """
        run = cls.open(workdir)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            # a unique name, because several processes may open one folder at once
            probe = run.path / f".write_probe-{uuid.uuid4().hex}"
            probe.write_text("")
            probe.unlink()
        except OSError as e:
            raise UserError(
                f"cannot write workdir {workdir}: {e.strerror or e}; expected a "
                "folder that this user may write, or a place for one. Choose another "
                "workdir"
            ) from e
        return run

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def config_file(self) -> epath.Path:
        """Config, task, model and versions of the run; written when the run starts."""
        return self.path / "config.json"

    @property
    def metric_log(self) -> epath.Path:
        """One line for each logged step and evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> epath.Path:
        """Folder of the checkpoints, each a folder named by its step."""
        return self.path / "checkpoints"

    @property
    def calibrator_file(self) -> epath.Path:
        """State of the calibrator fitted after training."""
        return self.path / "calibrator.json"

    @property
    def posterior_file(self) -> epath.Path:
        """Laplace posterior of the head's last layer."""
        return self.path / "laplace.npz"

    @property
    def tasks_file(self) -> epath.Path:
        """Names, descriptions and labels of the tasks of a set."""
        return self.path / "tasks.json"

    @property
    def conditions_file(self) -> epath.Path:
        """Embeddings of the descriptions and label names of a set of tasks."""
        return self.path / "conditions.npz"

    @property
    def targets_file(self) -> epath.Path:
        """Factors of the given adapters that a run learns to write."""
        return self.path / "targets.npz"

    @property
    def audit_file(self) -> epath.Path:
        """The last audit of the run's condition."""
        return self.path / "audit.json"

    @property
    def summary_file(self) -> epath.Path:
        """Summary of a finished run, or of all seeds."""
        return self.path / "summary.json"

    @property
    def seeds_file(self) -> epath.Path:
        """Config of a folder of seeds."""
        return self.path / "seeds.json"

    @property
    def lock_file(self) -> epath.Path:
        """File that is locked by the process that writes to the folder."""
        return self.path / ".lock"

    @property
    def identity_file(self) -> epath.Path:
        """The id by which Weights & Biases and Trackio know the run."""
        return self.path / "tracking.json"

    @property
    def appends(self) -> bool:
        """Whether files in it can be appended to, unlike those in object stores."""
        return "://" not in str(self.path)

    @property
    def tensorboard_dir(self) -> epath.Path:
        """TensorBoard events."""
        return self.path / "tb"

    @property
    def report_dir(self) -> epath.Path:
        """The report page and diagrams."""
        return self.path / "report"

    @property
    def report_file(self) -> epath.Path:
        """The report page."""
        return self.report_dir / "report.html"

    def diagram_file(self, split: str) -> epath.Path:
        """Reliability diagram of a split."""
        return self.report_dir / f"reliability_{split}.png"

    def predictions_file(self, split: str) -> epath.Path:
        """Raw logits, labels and ids of a split."""
        return self.path / "eval" / split / "predictions.npz"

    def metrics_file(self, split: str) -> epath.Path:
        """Metrics of a split."""
        return self.path / "eval" / split / "metrics.json"

    def evaluated_splits(self) -> list[str]:
        """Return the splits that have metrics: validation first, then by name."""
        return self._splits("metrics.json")

    def predicted_splits(self) -> list[str]:
        """Return the splits that have predictions: validation first, then by name."""
        return self._splits("predictions.npz")

    def _splits(self, name: str) -> list[str]:
        splits = files.listed(self.path / "eval")
        found = [split.name for split in splits if (split / name).exists()]
        return sorted(found, key=lambda split: (split != "validation", split))

    def seed(self, number: int) -> "Run":
        """Return the run of one seed in a folder of seeds."""
        return Run(self.path / f"seed_{number}")

    def seeds(self) -> list["Run"]:
        """Return the runs seed_0, seed_1, ... that exist, in order of their numbers."""
        named = files.listed(self.path, start="seed_")
        found = [path for path in named if _number(path).isdecimal()]
        return [Run(path) for path in sorted(found, key=lambda p: int(_number(p)))]


def _number(path: epath.Path) -> str:
    return path.name.removeprefix("seed_")


def unique_names(
    workdirs: Sequence[epath.PathLike],
    twice: str = "{} is given twice; expected each --workdir once",
) -> list[str]:
    """Name each run by the last parts of its path, as few as tell all runs apart.

    Args:
      workdirs: folders as the user gave them.
      twice: error message if a folder is given twice.

    Raises:
      UserError: a folder is given twice.
    """
    parts = [Run.open(workdir).path.parts for workdir in workdirs]
    for workdir, own in zip(workdirs, parts, strict=True):
        if parts.count(own) > 1:
            raise UserError(twice.format(workdir))
    for length in range(1, 1 + max(map(len, parts))):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return names
