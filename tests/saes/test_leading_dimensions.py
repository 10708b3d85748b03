"""Users may give activations of any leading dimensions, and see by `print` what they hold."""

from collections.abc import Callable

import pytest
import torch

from penstock.saes import ARCHITECTURES, SAE, GatedSAE
from penstock.sparse import SparseCode

MakeSAE = Callable[..., SAE]

LEADING = [(), (7,), (2, 5), (2, 1, 3), (0, 4)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_leading_dimensions_are_kept_everywhere(arch: str, leading: tuple[int, ...], random_sae: MakeSAE) -> None:
    sae = random_sae(arch, 6, 10)
    x = torch.randn(*leading, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = x.reshape(-1, 6)
    code, acts, x_hat = sae.encode_sparse(x), sae.encode(x), sae(x)

    assert code.shape == acts.shape == (*leading, 10)
    assert x_hat.shape == sae.decode(acts).shape == sae.decode_sparse(code).shape == x.shape
    assert code.l0.shape == leading
    assert torch.equal(acts.reshape(-1, 10), sae.encode(flat))
    assert torch.equal(code.to_dense(), acts)
    assert torch.equal(x_hat.reshape(-1, 6), sae(flat))
    assert torch.equal(code.l0, (acts != 0).sum(dim=-1))
    for same in (code.nonzero(), code.detach(), SparseCode.from_dense(acts)):
        assert same.shape == code.shape
        assert torch.equal(same.to_dense(), acts)


def test_gradients_pass_through_leading_dimensions(random_sae: MakeSAE) -> None:
    sae = random_sae("gated")
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(sae(x).square().sum(), x)
    (expected,) = torch.autograd.grad(sae(x.reshape(-1, 6)).square().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(5, 7), (7,), (2, 6, 1)], ids=str)
def test_another_width_is_an_error_that_names_both(shape: tuple[int, ...], random_sae: MakeSAE) -> None:
    with pytest.raises(ValueError, match=r"x has shape \[.*\], but this SAE takes \[\.\.\., d_in\] with d_in 6"):
        random_sae("gated").encode(torch.zeros(shape, dtype=torch.float64))


def test_an_arrangement_that_does_not_hold_the_tokens_is_refused(random_sae: MakeSAE) -> None:
    with pytest.raises(ValueError, match=r"sizes=\[2, 2\] do not fit a code of 3 tokens"):
        random_sae("relu").encode_sparse(torch.zeros(3, 6, dtype=torch.float64)).with_leading((2, 2))


def test_print_says_what_an_sae_and_a_code_are() -> None:
    sae = GatedSAE(6, 10)
    assert repr(sae) == "GatedSAE(d_in=6, d_sae=10, float32, cpu)"
    code = SparseCode.from_dense(torch.tensor([[[1.0, 0.0], [2.0, 3.0]]]))
    assert repr(code) == "SparseCode([1, 2, 2], mean L0 1.5, float32, cpu)"
    assert repr(code.support) == "Support(2 tokens, d_sae=2, 3 pairs, density=0.75)"
