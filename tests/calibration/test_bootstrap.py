import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from hypelora_jax.calibration import bootstrap, metrics, replicas
from hypelora_jax.errors import UserError

N, NUMBER = 150, 8
FEW = ("accuracy", "ece", "aurc")


def drawn(n=N, seed=0):
    chance = np.random.default_rng(seed)
    probs = chance.dirichlet(np.full(3, 0.7), n)
    probs[:: max(n // 20, 1)] = [1, 0, 0]  # ties and certainty
    soft = chance.dirichlet(np.full(3, 2.0), n)
    return probs, chance.integers(0, 3, n), soft


@pytest.fixture(scope="module")
def all_of_them():
    probs, labels, soft = drawn()
    names = replicas.names(soft=True)
    return replicas.draw(probs, labels, soft, names, NUMBER, seed=5)


@pytest.mark.parametrize("i", [0, NUMBER - 1])
def test_a_replica_is_the_metrics_of_the_rows_it_drew(all_of_them, i):
    probs, labels, soft = drawn()
    key = jax.random.fold_in(jax.random.key(5), i)
    count = np.asarray(replicas.counts(key, N)).astype(int)
    assert count.sum() == N and count.max() > 1
    rows = np.repeat(np.arange(N), count)
    wanted = metrics.compute_all(probs[rows], labels[rows], soft=soft[rows])
    assert set(wanted) - set(all_of_them) == {
        *("n", "num_classes", "ece_noise_floor", "consistency_p"),
        *(f"tace_{eps}_reference" for eps in ("0.01", "0.001", "0.0001")),
    }
    for name, got in all_of_them.items():
        if name != "kernel_ce":  # draws blocks, not rows
            assert got[i] == pytest.approx(wanted[name], rel=1e-5, abs=2e-6), name


def test_replicas_differ(all_of_them):
    for name, got in all_of_them.items():
        assert got.shape == (NUMBER,) and len(set(got)) > 1, name


def test_kernel_replicas_stand_around_the_value():
    probs, labels, _ = drawn(1600)
    got = replicas.draw(probs, labels, None, ("kernel_ce",), 400)["kernel_ce"]
    off = np.mean(got) - metrics.kernel_ce(probs, labels)
    assert abs(off) < 4 * np.std(got) / np.sqrt(400)


def test_replica_i_does_not_depend_on_their_number(all_of_them):
    probs, labels, _ = drawn()
    more = replicas.draw(probs, labels, None, FEW, 50, seed=5)
    assert more["ece"].shape == (50,)
    for name in FEW:
        np.testing.assert_allclose(more[name][:NUMBER], all_of_them[name], atol=1e-6)


def test_intervals_hold_their_value():
    probs, labels, _ = drawn()
    got = bootstrap.intervals(probs, labels, replicas=50, names=FEW)
    assert list(got) == list(FEW)
    whole = metrics.compute_all(probs, labels)
    for name, at in got.items():
        assert at["value"] == whole[name]
        assert 0 <= at["low"] < at["value"] < at["high"] <= 1, name
        assert all(type(x) is float for x in at.values())
    assert got == bootstrap.intervals(probs, labels, replicas=50, names=FEW)
    other = bootstrap.intervals(probs, labels, replicas=50, names=FEW, seed=1)
    assert other["ece"]["low"] != got["ece"]["low"]
    half = bootstrap.intervals(probs, labels, replicas=50, names=FEW, level=0.5)
    assert half["ece"]["low"] > got["ece"]["low"]
    assert half["ece"]["high"] < got["ece"]["high"]


def test_interval_by_hand():
    draw = np.linspace(0.2, 0.4, 201)
    ends = {"value": 0.25, "low": 0.205, "high": 0.395}
    assert bootstrap.interval("nll", 0.25, draw) == pytest.approx(ends)
    # recentred: moved down by .05, and cut where the metric ends
    ends |= {"low": 0.155, "high": 0.345}
    assert bootstrap.interval("ece", 0.25, draw) == pytest.approx(ends)
    got = bootstrap.interval("ece", 0.05, draw)
    assert got == pytest.approx({"value": 0.05, "low": 0.0, "high": 0.145})


# Two runs of the same true quality: for each example a logit, seen by each run through
# its own noise. Then p is uniform, but for its steps of 2 / (replicas + 1).
SETS, ROWS, DRAWS = 300, 120, 99


def null_p(number: int, rows: int, replicas: int, names: tuple[str, ...]) -> dict:
    out = {name: [] for name in names}
    for seed in range(number):
        chance = np.random.default_rng([seed, 5])
        z_N = 1.5 * chance.normal(size=rows)
        labels = (chance.random(rows) < scipy.special.expit(z_N)).astype(int)
        runs = [scipy.special.expit(z_N + chance.normal(size=rows)) for _ in "ab"]
        pair = [np.stack([1 - p, p], axis=1) for p in runs]
        how = {"replicas": replicas, "seed": seed, "names": names}
        got = bootstrap.paired(*pair, labels, **how)
        for name in names:
            out[name].append(got[name]["p"])
    return out


@pytest.mark.parametrize(
    ("number", "rows", "replicas"),
    [
        pytest.param(SETS, ROWS, DRAWS, id="short"),
        pytest.param(800, 600, 499, id="long", marks=pytest.mark.soak),
    ],
)
def test_paired_p_is_uniform_where_the_runs_are_equally_good(number, rows, replicas):
    found = null_p(number, rows, replicas, ("nll", "brier"))
    for name, p in found.items():
        # p is discrete: spread over the step it stands for
        chance = np.random.default_rng(1)
        spread = np.array(p) - chance.random(number) * 2 / (replicas + 1)
        ks = scipy.stats.kstest(spread, "uniform")
        assert ks.pvalue > 0.01, (name, ks)
        assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.04), name


def test_one_example():
    at = bootstrap.intervals([[0.25, 0.75]], [1], replicas=3, names=FEW)
    for name, value in {"accuracy": 1.0, "ece": 0.25, "aurc": 0.0}.items():
        assert at[name] == pytest.approx(dict.fromkeys(("value", "low", "high"), value))


def test_paired_difference():
    chance = np.random.default_rng(0)
    logits = chance.normal(size=(N, 3)) * 2
    labels = (logits + chance.gumbel(size=(N, 3))).argmax(axis=1)
    good, bad = (np.exp(z) / np.exp(z).sum(axis=1)[:, None] for z in (logits, -logits))
    names = ("accuracy", "nll", "ece")
    same = bootstrap.paired(good, good, labels, replicas=50, names=names)
    for at in same.values():
        assert at == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    got = bootstrap.paired(good, bad, labels, replicas=50, names=names)
    back = bootstrap.paired(bad, good, labels, replicas=50, names=names)
    for name, at in got.items():
        alone = [metrics.compute_all(p, labels)[name] for p in (good, bad)]
        assert at["value"] == alone[0] - alone[1]
        assert at["p"] == pytest.approx(2 / 51), name
        assert at["low"] <= at["value"] <= at["high"]
        assert back[name]["low"] == pytest.approx(-at["high"]), name
    assert got["nll"]["high"] < 0 < got["accuracy"]["low"]


def test_refuses():
    probs, labels, _ = drawn(10)
    with pytest.raises(
        UserError, match="metric 'ecce' has no interval; expected one of"
    ):
        bootstrap.intervals(probs, labels, names=["ecce"])
    with pytest.raises(UserError, match="metric 'soft_tv' has no interval"):
        bootstrap.intervals(probs, labels, names=["soft_tv"])
    with pytest.raises(UserError, match="replicas is 1; expected at least 2"):
        bootstrap.intervals(probs, labels, replicas=1)
    with pytest.raises(
        UserError, match="level is 95; expected a share between 0 and 1"
    ):
        bootstrap.intervals(probs, labels, level=95)
    with pytest.raises(UserError, match=r"\[10, 3\] and \[5, 3\]; expected two runs"):
        bootstrap.paired(probs, probs[:5], labels)


def test_one_block_of_the_kernel_error_has_no_interval():
    probs, labels = np.full((17, 2), 0.5), np.arange(17) % 2
    few = bootstrap.intervals(probs[:16], labels[:16], replicas=2)
    assert "kernel_ce" not in few and "smooth_ece" in few
    assert "kernel_ce" in bootstrap.intervals(probs, labels, replicas=2)
    with pytest.raises(UserError, match="'kernel_ce' has no interval"):
        bootstrap.paired(*[probs[:9]] * 2, labels[:9], names=("kernel_ce",))
