"""The last-layer Laplace approximation is laplace-torch's, on the same features.

laplace-torch (Daxberger et al. 2021) is asked for its full last-layer posterior in
float64; torch's own second derivatives are a second witness of the Hessian.
"""

import numpy as np
import pytest
import torch

from hypelora_jax.evaluate import laplace

CASES = {"two classes": (2, 7), "three classes, few rows": (3, 40)}


def problem(classes: int, width: int, n: int = 60):
    """Features, labels, a last layer trained a little, and other features."""
    draw = np.random.default_rng(classes)
    x, held = np.tanh(draw.normal(size=(2, n, width)))
    label = draw.integers(0, classes, n)
    mean_FY = 0.7 * draw.normal(size=(width + 1, classes))
    return x, label, mean_FY, held


def torch_model(mean_FY: np.ndarray) -> torch.nn.Module:
    last = torch.nn.Linear(*(mean_FY.shape - np.array([1, 0])), dtype=torch.float64)
    with torch.no_grad():
        last.weight.copy_(torch.tensor(mean_FY[:-1].T))
        last.bias.copy_(torch.tensor(mean_FY[-1]))
    return torch.nn.Sequential(torch.nn.Identity(), last)


@pytest.mark.parametrize("case", CASES)
def test_hessian_is_torchs(case):
    x, label, mean_FY, _ = problem(*CASES[case])
    phi = torch.tensor(laplace.with_one(x))

    def nll(weights):
        losses = torch.nn.functional.cross_entropy
        return losses(phi @ weights, torch.tensor(label), reduction="sum")

    wanted = torch.autograd.functional.hessian(nll, torch.tensor(mean_FY))
    got = laplace.hessian(laplace.with_one(x), mean_FY)
    np.testing.assert_allclose(got, wanted, atol=1e-10)


# its dependencies warn of torch's and Python's future when they are imported
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tau", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("case", CASES)
def test_posterior_and_predictions_are_laplace_torchs(case, tau, monkeypatch):
    from laplace import Laplace  # here: its warnings belong to this test

    x, label, mean_FY, held = problem(*CASES[case])
    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(label))
    theirs = Laplace(
        torch_model(mean_FY),
        "classification",
        subset_of_weights="last_layer",
        hessian_structure="full",
        prior_precision=tau,
    )
    theirs.fit(torch.utils.data.DataLoader(data, batch_size=16))
    monkeypatch.setattr(laplace, "PRECISIONS", np.array([tau]))
    phi, held_phi = laplace.with_one(x), laplace.with_one(held)
    ours = laplace.fit(phi, mean_FY, held_phi, label, link="probit")
    mean_NY, cov_NYY = laplace.moments(ours, held_phi)
    mean, cov = theirs._glm_predictive_distribution(torch.tensor(held))
    np.testing.assert_allclose(mean_NY, mean.detach(), atol=1e-8)
    np.testing.assert_allclose(cov_NYY, cov.detach(), rtol=1e-5, atol=1e-8)
    wanted = theirs(torch.tensor(held), pred_type="glm", link_approx="probit")
    logits_NY = laplace.predict(ours, held, "probit")
    got = np.exp(logits_NY) / np.exp(logits_NY).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got, wanted.detach(), atol=1e-6)
