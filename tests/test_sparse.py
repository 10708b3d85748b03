import pytest
import torch

from penstock.sparse import SparseCode, Support

NAN = float("nan")
DENSE = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 4.0]])


@pytest.fixture
def code() -> SparseCode:
    """DENSE, on a support that has a pair more: token 0, latent 0 is zero."""
    support = Support(torch.tensor([0, 3, 3, 5]), torch.tensor([0, 1, 3, 0, 3], dtype=torch.int32), 4)
    return SparseCode(support, torch.tensor([0.0, 2.0, -1.0, 3.0, 4.0]))


def test_a_dense_code_there_and_back() -> None:
    code = SparseCode.from_dense(DENSE)
    assert code.support.offsets.tolist() == [0, 2, 2, 4]
    assert code.support.indices.tolist() == [1, 3, 0, 3] and code.support.indices.dtype == torch.int32
    assert code.values.tolist() == [2.0, -1.0, 3.0, 4.0]
    assert torch.equal(code.to_dense(), DENSE)


def test_a_nan_is_an_entry() -> None:
    code = SparseCode.from_dense(torch.tensor([[0.0, NAN]]))
    assert code.support.indices.tolist() == [1]
    assert code.nonzero().values.isnan().all() and len(code.nonzero().values) == 1
    assert code.l0.tolist() == [1]


def test_what_is_counted_are_entries_that_are_not_zero(code: SparseCode) -> None:
    assert code.l0.tolist() == [2, 0, 2]
    assert code.firing.tolist() == [1, 1, 0, 2]


def test_zeros_can_be_dropped(code: SparseCode) -> None:
    smaller = code.nonzero()
    assert smaller.support.offsets.tolist() == [0, 2, 2, 4] and smaller.support.indices.tolist() == [1, 3, 0, 3]
    assert torch.equal(smaller.to_dense(), DENSE) and torch.equal(code.to_dense(), DENSE)


def test_a_support_knows_its_tokens_its_latents_and_its_density(code: SparseCode) -> None:
    assert code.support.batch == 3
    assert code.support.tokens.tolist() == [0, 0, 0, 2, 2]
    assert code.support.latents.tolist() == [0, 1, 3]
    assert code.support.density == 5 / 12


def test_an_empty_batch_and_an_empty_dictionary_have_codes() -> None:
    for shape in ((0, 4), (3, 0)):
        code = SparseCode.from_dense(torch.zeros(shape))
        assert code.to_dense().shape == shape and code.nonzero().to_dense().shape == shape
        assert code.l0.shape == shape[:1] and code.firing.shape == shape[1:] and code.support.density == 0


def test_gradients_pass_through_the_change_of_form(code: SparseCode) -> None:
    values = code.values.clone().requires_grad_()
    dense = SparseCode(code.support, values).nonzero().to_dense()
    (dense * torch.arange(12.0).view(3, 4)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 3.0, 8.0, 11.0]
    assert not SparseCode(code.support, values).detach().values.requires_grad
