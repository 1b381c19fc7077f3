"""The audit finds a generator that ignores its condition, and passes one that does not.

Both are planted. The tasks of a set ask the same texts for a label or for its opposite,
so that only the condition tells what is asked.
"""

import numpy as np
import pytest

from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.data.tasks import TaskSet
from hypelora_jax.evaluate.audit import auditing, controls, description_only

TASKS, ROWS, WIDTH, HELD_OUT = 24, 40, 8, 10


def embed(texts):
    """Vectors of texts that depend on nothing but the text, far from the tasks'."""
    out = []
    for some in texts:
        rng = np.random.default_rng([len("".join(some)), len(some)])
        out.append(3 + rng.normal(size=(len(some), WIDTH)).astype(np.float32))
    return out


def planted(seed: int):
    """A set of tasks, the rows of its held-out tasks, and noise of their answers."""
    rng = np.random.default_rng(seed)
    polarity_K = np.arange(TASKS) % 2
    vectors = rng.normal(size=(TASKS, WIDTH)).astype(np.float32)
    vectors[:, 0] = np.where(polarity_K, 1, -1)
    held_out = tuple(k >= TASKS - HELD_OUT for k in range(TASKS))
    some = tuple((f"task {k}",) for k in range(TASKS))
    tasks = TaskSet(
        tuple(f"t{k}" for k in range(TASKS)),
        some,
        (("no", "yes"),) * TASKS,
        held_out,
        (1.0,) * TASKS,
    )
    arrays = TaskArrays({"condition": vectors})
    task_N = np.repeat(np.arange(TASKS), ROWS)
    truth_N = rng.integers(2, size=len(task_N))  # what the text says
    label_N = truth_N ^ polarity_K[task_N]
    noise_N = 0.5 * rng.normal(size=len(task_N))
    return tasks, arrays, task_N, truth_N, label_N, noise_N


def probs_of(logit_N: np.ndarray) -> np.ndarray:
    p_N = 1 / (1 + np.exp(-logit_N))
    return np.stack([1 - p_N, p_N], axis=1)


def audited(seed: int, generator) -> dict:
    tasks, arrays, task_N, truth_N, label_N, noise_N = planted(seed)
    at = np.flatnonzero(np.asarray(tasks.held_out)[task_N])
    wanted = np.unique(task_N[at]).tolist()
    probs = {
        name: np.stack(
            [
                probs_of(
                    generator(one["condition"][task_N[at]], truth_N[at]) + noise_N[at]
                )
                for one in draws
            ]
        )
        for name, draws in controls.draws(arrays, tasks, wanted, embed, seed).items()
    }
    trained = np.flatnonzero(~np.asarray(tasks.held_out)[task_N])
    share = description_only.shares(label_N[trained], task_N[trained], 2)
    x_KC = arrays.conditions["condition"]
    told = description_only.fit_predict(x_KC[: TASKS - HELD_OUT], share, x_KC)
    probs["description_only"] = told[task_N[at]][None]
    static_N = 0 * truth_N[at] + 0.1 * noise_N[at]  # the tasks contradict each other
    probs["static"] = probs_of(static_N)[None]
    return auditing.compare(probs, label_N[at], task_N[at], replicas=300, seed=seed)


def lookup(condition_NC: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Answer as the condition says; one that is not of a task gets no answer."""
    sign_N = np.where(np.abs(condition_NC[:, 0]) == 1, condition_NC[:, 0], 0)
    return -2 * sign_N * (2 * truth_N - 1)


def constant(condition_NC: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Answer what the text says, whatever is asked."""
    del condition_NC
    return 0.3 * (2 * truth_N - 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_generator_that_looks_its_condition_up_passes(seed):
    found = audited(seed, lookup)
    assert found["verdict"] == "matters", found["line"]
    assert found["controls"]["matched"]["accuracy"]["value"] > 0.95
    assert found["controls"]["mean"]["accuracy"]["value"] < 0.7


@pytest.mark.parametrize("seed", range(20))
def test_a_constant_generator_is_flagged(seed):
    found = audited(seed, constant)
    assert found["verdict"] == "does not matter", found["line"]
    assert found["margins"]["shuffled"]["nll"]["value"] == 0
    assert found["outputs"]["kl_shuffled"] == 0


def test_a_shuffled_condition_is_never_that_of_the_task():
    trained = np.array([0, 2, 3, 5])
    for seed in range(50):
        source = controls.other(np.random.default_rng(seed), 6, trained)
        assert set(source) <= set(trained)
        assert sorted(source[trained]) == sorted(trained)
        assert (source[trained] != trained).all()


def test_the_nearest_training_task_is_another_one_and_the_most_alike():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 5)).astype(np.float32) + 4  # what all descriptions share
    trained = np.array([0, 1, 2, 3])
    x[5] = x[trained].mean(axis=0) + 2 * (x[2] - x[trained].mean(axis=0))
    found = controls.nearest({"condition": x}, trained)
    assert found[5] == 2 and set(found) <= set(trained)
    assert all(found[k] != k for k in trained)
    centred = x - x[trained].mean(axis=0)
    for k in range(7):
        cosines = {
            t: centred[k] @ centred[t] / np.linalg.norm(centred[t])
            for t in trained
            if t != k
        }
        assert found[k] == max(cosines, key=cosines.get)


def test_learned_rows_have_only_the_controls_that_need_no_description():
    tasks, _, *_ = planted(0)
    arrays = TaskArrays({"which": np.arange(TASKS, dtype=np.int32)})
    found = controls.draws(arrays, tasks, [0], embed, 0)
    assert found.keys() == {"matched", "shuffled"}


def test_texts_for_the_audit_are_used_if_every_audited_task_has_some():
    tasks, arrays, *_ = planted(0)
    some = tuple(("a", "b") if k != 3 else () for k in range(TASKS))
    tasks = tasks._replace(paraphrases=some, negations=some)
    names = {"paraphrased", "negated"}
    assert names <= controls.draws(arrays, tasks, [0, 1], embed, 0).keys()
    assert not names & controls.draws(arrays, tasks, [0, 3], embed, 0).keys()
    first, last = controls.draws(arrays, tasks, [0], embed, 0)["negated"]
    a, b = embed([("a", "b")])[0]
    np.testing.assert_array_equal(first["condition"][0], a)
    np.testing.assert_array_equal(last["condition"][0], b)
