"""Controls of every sweep, checked against their definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.evaluation import Candidate
from penstock.evaluation.controls import controls, principal_directions

SITE = "resid_post.2"


@pytest.fixture
def acts() -> Tensor:
    """Correlated training activations away from the origin."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(400, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3


@pytest.fixture
def x() -> Tensor:
    """Activations that the controls have not seen."""
    return 4 * torch.randn(25, 6, generator=torch.Generator().manual_seed(1)) + 1


def named(acts: Tensor, name: str, components: tuple[int, ...] = ()) -> Candidate:
    (found,) = [control for control in controls(SITE, acts, components) if control.name == f"{name}-{SITE}"]
    return found


def reconstruct(control: Candidate, x: Tensor) -> Tensor:
    return control.decode(control.encode(x))


def test_every_sweep_gets_identity_zero_mean_and_the_pcas_asked_for(acts: Tensor) -> None:
    found = controls(SITE, acts, (2, 5))
    assert [control.name for control in found] == [
        f"{name}-{SITE}" for name in ("identity", "zero", "mean", "pca_2", "pca_5")
    ]
    assert {(control.site, control.d_in) for control in found} == {(SITE, 6)}


def test_identity_returns_every_activation_bit_for_bit(acts: Tensor, x: Tensor) -> None:
    control = named(acts, "identity")
    assert torch.equal(reconstruct(control, x), x)
    assert torch.equal(control.encode(x).to_dense(), x)


def test_zero_returns_zero_without_a_latent(acts: Tensor, x: Tensor) -> None:
    control = named(acts, "zero")
    assert control.encode(x).to_dense().shape == (25, 0)
    assert torch.equal(reconstruct(control, x), torch.zeros_like(x))


def test_mean_returns_the_mean_of_the_training_activations_without_a_latent(acts: Tensor, x: Tensor) -> None:
    control = named(acts, "mean")
    assert control.encode(x).to_dense().shape == (25, 0)
    expected = torch.from_numpy(acts.numpy().astype(np.float64).mean(axis=0)).float()
    torch.testing.assert_close(reconstruct(control, x), expected.expand_as(x))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_pca_is_the_projection_on_the_leading_singular_vectors(acts: Tensor, x: Tensor, k: int) -> None:
    control = named(acts, f"pca_{k}", (k,))
    data = acts.numpy().astype(np.float64)
    mean = data.mean(axis=0)
    _, _, directions = np.linalg.svd(data - mean, full_matrices=False)
    leading = directions[:k]
    expected = mean + (x.numpy() - mean) @ leading.T @ leading
    np.testing.assert_allclose(reconstruct(control, x).numpy(), expected, atol=1e-4)
    assert control.encode(x).to_dense().shape == (25, k)


def test_pca_with_all_components_is_the_identity(acts: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(reconstruct(named(acts, "pca_6", (6,)), x), x, rtol=0, atol=1e-4)


def test_more_components_explain_more_of_the_training_activations(acts: Tensor) -> None:
    errors = [(reconstruct(named(acts, f"pca_{k}", (k,)), acts) - acts).square().sum().item() for k in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    variances = np.linalg.eigvalsh(np.cov(acts.numpy().T))
    assert errors[1] == pytest.approx(399 * variances[:4].sum(), rel=1e-3)


def test_principal_directions_are_orthonormal(acts: Tensor) -> None:
    directions = principal_directions(acts)
    torch.testing.assert_close(directions @ directions.T, torch.eye(6), rtol=0, atol=1e-6)


def test_latents_of_a_control_weigh_the_same_in_its_l1(acts: Tensor) -> None:
    widths = {"identity": 6, "zero": 0, "mean": 0, "pca_2": 2}
    for name, width in widths.items():
        torch.testing.assert_close(named(acts, name, (2,)).decoder_norm, torch.ones(width))
