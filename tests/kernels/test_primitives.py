"""The primitives against dense autograd, on every path, over shapes where loops go wrong."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from penstock.kernels import decode_from_support, encode_to_support, forced, per_latent
from penstock.kernels.dispatch import Choice
from penstock.sparse import SparseCode

PATHS: list[Choice] = ["reference", "cpu"]
every_path = pytest.mark.parametrize("path", PATHS)


class Problem(NamedTuple):
    x: Tensor
    W_enc: Tensor
    b_dec: Tensor
    cut: Tensor
    W_dec: Tensor
    scale: Tensor
    bias: Tensor


def problem(batch: int, d_in: int, d_sae: int, *, cut: float, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cuts = cut + 0.3 * randn(d_sae)
    return Problem(
        randn(batch, d_in), randn(d_sae, d_in).T, randn(d_in), cuts, randn(d_sae, d_in), randn(d_sae), randn(d_sae)
    )


def on_support(p: Problem) -> Tensor:
    """A loss that uses every primitive, and every value twice: in a reconstruction and in a loss of its own."""
    code = encode_to_support(p.x, p.W_enc, p.b_dec, p.cut)
    first = code.values * per_latent(p.scale, code.support)
    second = torch.sin(code.values + per_latent(p.bias, code.support))
    x_hat, x_aux = decode_from_support(code.support, [first, second], p.W_dec, p.b_dec, trained=[True, False])
    return (x_hat - p.x).square().sum() + (x_aux - 2 * p.x).pow(3).sum() + (first * second).sum()


def dense(p: Problem) -> Tensor:
    """The same in ordinary PyTorch."""
    product = (p.x - p.b_dec) @ p.W_enc
    mask = (product > p.cut).double()
    first, second = mask * product * p.scale, mask * torch.sin(product + p.bias)
    x_hat, x_aux = first @ p.W_dec + p.b_dec, second @ p.W_dec.detach() + p.b_dec.detach()
    return (x_hat - p.x).square().sum() + (x_aux - 2 * p.x).pow(3).sum() + (first * second).sum()


def gradients(loss: Tensor, p: Problem) -> list[Tensor]:
    wanted = [p.x, p.W_enc, p.b_dec, p.W_dec, p.scale, p.bias]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))


def check(p: Problem) -> None:
    p = Problem(*(tensor.detach().requires_grad_() for tensor in p))
    ours, theirs = on_support(p), dense(p)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for name, one, other in zip(("x", "W_enc", "b_dec", "W_dec", "scale", "bias"), *map_gradients(p), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def map_gradients(p: Problem) -> Iterator[list[Tensor]]:
    return (gradients(function(p), p) for function in (on_support, dense))


@every_path
@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(0, 9),
    d_in=st.integers(1, 13),
    d_sae=st.integers(1, 40),
    cut=st.sampled_from([-100.0, -1.0, 0.0, 2.0, 100.0]),
    seed=st.integers(0, 3),
)
def test_values_and_gradients_equal_dense_autograds(
    path: Choice, batch: int, d_in: int, d_sae: int, cut: float, seed: int
) -> None:
    with forced(path):
        check(problem(batch, d_in, d_sae, cut=cut, seed=seed))


@every_path
@pytest.mark.parametrize(
    ("batch", "d_sae", "cut"),
    [(5, 7, 100.0), (5, 7, -100.0), (0, 7, 0.0), (1, 7, 0.0), (3, 1, 0.0)],
    ids=["nothing fires", "everything fires", "empty batch", "one token", "one latent"],
)
def test_the_corners_are_right(path: Choice, batch: int, d_sae: int, cut: float) -> None:
    with forced(path):
        check(problem(batch, 4, d_sae, cut=cut))


@every_path
def test_a_token_and_a_latent_without_pairs_have_zero_gradients(path: Choice) -> None:
    p = problem(6, 5, 8, cut=0.0)
    p.x[2] = p.b_dec
    p.cut[:] = 0.0
    p.cut[3] = 1e6
    p = Problem(*(tensor.requires_grad_() for tensor in p))
    with forced(path):
        code = encode_to_support(p.x, p.W_enc, p.b_dec, p.cut)
        of_W, of_x = torch.autograd.grad(code.values.square().sum(), [p.W_enc, p.x])
    assert (of_W[:, 3] == 0).all() and (of_x[2] == 0).all() and (of_W[:, 2] != 0).any()


@every_path
def test_gradcheck_in_float64(path: Choice) -> None:
    p = Problem(*(tensor.requires_grad_() for tensor in problem(4, 3, 6, cut=0.5)))

    def loss(x: Tensor, W_enc: Tensor, b_dec: Tensor, W_dec: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return on_support(Problem(x, W_enc, b_dec, p.cut.detach(), W_dec, scale, bias))

    with forced(path):
        code = encode_to_support(p.x, p.W_enc, p.b_dec, p.cut)
        nearest = (code.values - p.cut[code.support.indices]).min()
        assert nearest > 1e-4, "a pair at its cut would make finite differences meaningless"
        # W_dec and b_dec receive no gradient through the second code, as asked, so differences would see more.
        assert gradcheck(loss, (p.x, p.W_enc, p.b_dec.detach(), p.W_dec.detach(), p.scale, p.bias))


@every_path
def test_gradcheck_of_a_decoder_that_all_codes_train(path: Choice) -> None:
    p = problem(4, 3, 6, cut=0.5)
    support = encode_to_support(p.x, p.W_enc, p.b_dec, p.cut).support
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randn(len(support.indices), generator=generator, dtype=torch.float64) for _ in range(3)]
    inputs = [tensor.requires_grad_() for tensor in (p.W_dec, p.b_dec, *codes)]

    def decoded(W_dec: Tensor, b_dec: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(decode_from_support(support, values, W_dec, b_dec, trained=[True] * 3))

    with forced(path):
        assert gradcheck(decoded, inputs)


@every_path
def test_a_reconstruction_that_no_loss_uses_costs_no_gradient(path: Choice) -> None:
    p = Problem(*(tensor.requires_grad_() for tensor in problem(4, 3, 6, cut=0.0)))
    with forced(path):
        code = encode_to_support(p.x, p.W_enc, p.b_dec, p.cut)
        first, second = code.values * 2, code.values * 3
        unused, used = decode_from_support(code.support, [first, second], p.W_dec, p.b_dec, trained=[True, False])
        found = torch.autograd.grad(used.sum(), [p.W_dec, p.W_enc], allow_unused=True, retain_graph=True)
        assert found[0] is None and found[1] is not None
        (only_first,) = torch.autograd.grad(unused.sum(), [p.W_dec])
    assert (only_first != 0).any()


@every_path
def test_memory_order_of_the_inputs_does_not_matter(path: Choice) -> None:
    p = problem(6, 5, 8, cut=0.0)
    turned = p._replace(
        x=p.x.T.contiguous().T, W_enc=p.W_enc.contiguous(), W_dec=torch.cat([p.W_dec, p.W_dec], dim=1)[:, :5]
    )
    assert not turned.x.is_contiguous() and not turned.W_dec.is_contiguous() and not p.W_enc.is_contiguous()
    with forced(path):
        torch.testing.assert_close(on_support(turned), on_support(p), rtol=1e-12, atol=0)
        check(turned)


@every_path
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_number_in_x_reaches_the_code_and_is_never_dropped(path: Choice, bad: float) -> None:
    p = problem(4, 3, 50, cut=1.0)
    p.x[1, 2] = bad
    with forced(path):
        code = encode_to_support(p.x, p.W_enc, p.b_dec, p.cut)
    assert not code.values.isfinite().all()
    assert code.to_dense()[[0, 2, 3]].isfinite().all()


@every_path
def test_two_runs_give_the_same_bits(path: Choice) -> None:
    p = Problem(*(tensor.float().requires_grad_() for tensor in problem(300, 24, 200, cut=2.0)))
    with forced(path):
        once, again = map(list, (gradients(on_support(p), p) for _ in range(2)))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_below_the_switch_and_above_it_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(8, 5, 30, cut=0.0)
    for switch in (0.0, 1.0):
        monkeypatch.setattr("penstock.kernels.dispatch.DENSE_ABOVE", {"cpu": switch})
        check(p)


def test_a_batch_with_positions_is_refused_with_the_remedy() -> None:
    p = problem(4, 3, 6, cut=0.0)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 3\).*Flatten tokens first: x.reshape"):
        encode_to_support(p.x.view(2, 2, 3), p.W_enc, p.b_dec, p.cut)
    with pytest.raises(ValueError, match=r"shape \(4, 2\).*d_in 3"):
        encode_to_support(p.x[:, :2], p.W_enc, p.b_dec, p.cut)
    with pytest.raises(ValueError, match="x is torch.float32, but the encoder is torch.float64"):
        encode_to_support(p.x.float(), p.W_enc, p.b_dec, p.cut)


@every_path
def test_under_autocast_the_factors_are_rounded_and_the_product_is_not(path: Choice) -> None:
    p = Problem(*(tensor.float() for tensor in problem(16, 40, 30, cut=3.0)))
    with forced(path), torch.autocast("cpu", dtype=torch.bfloat16):
        code = encode_to_support(p.x, p.W_enc, p.b_dec, p.cut)
    product = (p.x - p.b_dec).bfloat16().double() @ p.W_enc.bfloat16().double()
    expected = SparseCode.from_dense(torch.where(product > p.cut, product, 0.0))
    assert code.values.dtype == torch.float32
    assert torch.equal(code.support.indices, expected.support.indices)
    torch.testing.assert_close(code.values.double(), expected.values, rtol=1e-5, atol=1e-5)
    assert not torch.equal(code.values, code.values.bfloat16().float())


@every_path
def test_backward_inside_autocast_gives_the_same_gradients(path: Choice) -> None:
    p = Problem(*(tensor.float().requires_grad_() for tensor in problem(16, 40, 30, cut=3.0)))
    with forced(path), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(on_support(p), p)
        loss = on_support(p)
    with forced(path):
        outside = gradients(loss, p)
    assert {gradient.dtype for gradient in inside} == {torch.float32}
    for one, other in zip(inside, outside, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert not torch.equal(inside[2], inside[2].bfloat16().float()), "b_dec's, by a product of matrix and vector"
