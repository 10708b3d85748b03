"""The CUDA kernels against their definition: in Triton's interpreter, or compiled where there is a GPU.

Run as a script, this file compiles every kernel for an H100 without having one.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.kernels import decode_from_support, encode_to_support, forced, per_latent, reference
from penstock.kernels.protocol import AdamStep
from penstock.sparse import SparseCode, Support

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
from penstock.kernels import cuda  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

SHAPES = [(4, 21, 37), (1, 7, 19), (0, 6, 17), (3, 32, 16), (4, 1, 9)]
"""batch, d_in, d_sae."""

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors need several blocks of everything, and end inside one."""
    for name, value in {"BLOCK": 80, "COLUMNS": 16, "TILE": 64, "SPLIT": 2, "WIDTH": 4}.items():
        monkeypatch.setattr(cuda, name, value)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def whole(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Small whole numbers: their products are exact, and often equal to each other."""
    return (2 * normal(*shape, seed=seed)).round().to(dtype)


def support_of(shape: tuple[int, int, int], share: float = 0.4) -> Support:
    """Pairs at random, but none of the second token and none of the fourth latent."""
    batch, _, d_sae = shape
    fires = normal(batch, d_sae, seed=5) < math.sqrt(2) * torch.erfinv(torch.tensor(2 * share - 1)).item()
    fires[1:2] = False
    fires[:, 3] = False
    return SparseCode.from_dense(fires.double()).support


def many(support: Support, codes: int, dtype: torch.dtype) -> list[Tensor]:
    return [normal(len(support.indices), dtype=dtype, seed=10 + c) for c in range(codes)]


def close(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-13
    size = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * (1 + size))


def same_code(found: SparseCode, expected: SparseCode) -> None:
    assert torch.equal(found.support.offsets, expected.support.offsets)
    assert torch.equal(found.support.indices, expected.support.indices)
    assert found.support.indices.dtype == torch.int32
    assert found.support.offsets.dtype == torch.int64
    assert torch.equal(found.values.nan_to_num(-1e9), expected.values.nan_to_num(-1e9))
    assert found.values.dtype == expected.values.dtype


@each_shape
@each_precision
def test_select_keeps_what_exceeds_the_cut_and_not_what_equals_it(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    batch, d_in, d_sae = shape
    x, W, cut = whole(batch, d_in, dtype=dtype), whole(d_sae, d_in, dtype=dtype, seed=1), whole(d_sae, dtype=dtype)
    x[1:2], cut[3] = 0, math.inf
    found, expected = cuda.select(x, W.T, cut.abs()), reference.select(x, W.T, cut.abs())
    same_code(found, expected)
    assert batch == 0 or ((x @ W.T) == cut.abs()).any()
    assert not (found.support.indices == 3).any()
    assert found.l0[1:2].sum() == 0


@each_shape
def test_select_can_keep_everything_and_nothing(shape: tuple[int, int, int]) -> None:
    batch, d_in, d_sae = shape
    x, W = whole(batch, d_in), whole(d_sae, d_in, seed=1)
    everything = cuda.select(x, W.T, torch.full((d_sae,), -math.inf, device=DEVICE, dtype=x.dtype))
    same_code(everything, reference.select(x, W.T, torch.full((d_sae,), -math.inf, device=DEVICE, dtype=x.dtype)))
    assert len(everything.values) == batch * d_sae
    nothing = cuda.select(x, W.T, torch.full((d_sae,), math.inf, device=DEVICE, dtype=x.dtype))
    assert len(nothing.values) == 0
    assert torch.equal(nothing.support.offsets, torch.zeros_like(nothing.support.offsets))


def test_select_never_drops_a_nan() -> None:
    x, W, cut = whole(3, 5), whole(20, 5, seed=1), torch.full((20,), math.inf, device=DEVICE, dtype=torch.float64)
    x[1, 2] = math.nan
    found = cuda.select(x, W.T, cut)
    assert found.l0.tolist() == [0, 20, 0]
    assert found.values.isnan().all()


@pytest.mark.parametrize("factors", [torch.bfloat16, torch.float16], ids=str)
def test_select_rounds_the_factors_but_not_the_product(factors: torch.dtype) -> None:
    # The third entry vanishes beside 1 in either format, the second only if the product is rounded.
    tiny, small = 2.0**-13, 2.0**-12
    x = torch.tensor([[1 + tiny, 0.0], [1.0, small]], device=DEVICE)
    W = torch.ones(1, 2, device=DEVICE)
    cut = torch.ones(1, device=DEVICE)
    assert cuda.select(x, W.T, cut).support.offsets.tolist() == [0, 1, 2]
    found = cuda.select(x, W.T, cut, factors)
    assert found.support.offsets.tolist() == [0, 0, 1]
    assert found.values.tolist() == [1 + small]
    assert found.values.dtype == torch.float32
    same_code(found, reference.select(x, W.T, cut, factors))


def test_select_rounds_factors_of_every_block_and_of_doubles() -> None:
    x, W, cut = normal(5, 9), normal(20, 9, seed=1), torch.full((20,), -math.inf, device=DEVICE).double()
    found, expected = (kernels.select(x, W.T, cut, torch.bfloat16) for kernels in (cuda, reference))
    close(found.values, expected.values)
    assert (found.values - (x @ W.T).flatten()).abs().max() > 1e-3


@each_shape
@each_precision
@pytest.mark.parametrize("codes", [1, 2])
def test_sums_over_the_support_are_those_of_dense_matrices(
    shape: tuple[int, int, int], dtype: torch.dtype, codes: int
) -> None:
    batch, d_in, d_sae = shape
    support = support_of(shape)
    values, rows = many(support, codes, dtype), [normal(batch, d_in, dtype=dtype, seed=20 + c) for c in range(codes)]
    W, bias = normal(d_sae, d_in, dtype=dtype, seed=1), normal(d_in, dtype=dtype, seed=2)
    for found, expected in zip(
        cuda.decode(support, values, W, bias), reference.decode(support, values, W, bias), strict=True
    ):
        close(found, expected)
        assert torch.equal(found[1:2], bias.expand(batch, -1)[1:2])
    for found, expected in zip(
        cuda.value_gradients(support, rows, W), reference.value_gradients(support, rows, W), strict=True
    ):
        close(found, expected)
    gradient = cuda.weight_gradient(support, values, rows)
    close(gradient, reference.weight_gradient(support, values, rows))
    assert gradient[3].tolist() == [0] * d_in
    sums = cuda.sum_by_latent(support, values[0])
    close(sums, reference.sum_by_latent(support, values[0]))
    assert sums[3] == 0


def test_an_odd_number_of_codes_is_summed_as_well() -> None:
    batch, d_in, d_sae = shape = (2, 9, 11)
    support = support_of(shape)
    codes, rows = many(support, 3, torch.float64), [normal(batch, d_in, seed=20 + c) for c in range(3)]
    W, bias = normal(d_sae, d_in, seed=1), normal(d_in, seed=2)
    for found, expected in zip(
        [*cuda.decode(support, codes, W, bias), *cuda.value_gradients(support, rows, W)],
        [*reference.decode(support, codes, W, bias), *reference.value_gradients(support, rows, W)],
        strict=True,
    ):
        close(found, expected)
    close(cuda.weight_gradient(support, codes, rows), reference.weight_gradient(support, codes, rows))


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_few_pairs_and_all_pairs_are_summed_as_well(share: float) -> None:
    shape = (6, 21, 20)
    batch, d_in, d_sae = shape
    support = support_of(shape, share) if share < 1 else SparseCode.from_dense(normal(batch, d_sae)).support
    assert (support.density == 1) == (share == 1)
    (code,), rows, W, bias = many(support, 1, torch.float64), normal(batch, d_in), normal(d_sae, d_in), normal(d_in)
    close(cuda.decode(support, [code], W, bias)[0], reference.decode(support, [code], W, bias)[0])
    close(cuda.value_gradients(support, [rows], W)[0], reference.value_gradients(support, [rows], W)[0])
    close(cuda.weight_gradient(support, [code], [rows]), reference.weight_gradient(support, [code], [rows]))
    close(cuda.sum_by_latent(support, code), reference.sum_by_latent(support, code))


def test_the_blocks_of_real_runs_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert cuda.COLUMNS == cuda.TILE == 2048
    batch, d_in, d_sae = shape = (2, 700, 2100)
    support = support_of(shape, 0.01)
    (code,), rows, W, bias = many(support, 1, torch.float64), normal(batch, d_in), normal(d_sae, d_in), normal(d_in)
    close(cuda.decode(support, [code], W, bias)[0], reference.decode(support, [code], W, bias)[0])
    close(cuda.value_gradients(support, [rows], W)[0], reference.value_gradients(support, [rows], W)[0])
    x, W, cut = whole(batch, 5), whole(d_sae, 5, seed=1), whole(d_sae) + 9
    same_code(cuda.select(x, W.T, cut), reference.select(x, W.T, cut))


def test_tensors_with_gaps_are_read_right() -> None:
    batch, d_in, d_sae = shape = (3, 11, 19)
    support = support_of(shape)
    wide = many(support, 1, torch.float64)[0].repeat_interleave(2)
    code, x, W = wide[::2], normal(2 * batch, 2 * d_in)[::2, ::2], normal(d_in, d_sae).T
    bias, cut = normal(2 * d_in)[::2], normal(2 * d_sae)[::2]
    assert not any(tensor.is_contiguous() for tensor in (code, x, W, bias, cut))
    for W_enc in (W.T, W.contiguous().T):
        found, expected = cuda.select(x, W_enc, cut), reference.select(x, W_enc, cut)
        assert torch.equal(found.support.indices, expected.support.indices)
        close(found.values, expected.values)
    close(cuda.decode(support, [code], W, bias)[0], reference.decode(support, [code], W, bias)[0])
    close(cuda.value_gradients(support, [x], W)[0], reference.value_gradients(support, [x], W)[0])
    close(cuda.weight_gradient(support, [code], [x]), reference.weight_gradient(support, [code], [x]))
    close(cuda.sum_by_latent(support, code), reference.sum_by_latent(support, code))
    gapped = Support(support.offsets.repeat_interleave(2)[::2], support.indices.repeat_interleave(2)[::2], d_sae)
    assert torch.equal(cuda.decode(gapped, [code], W, bias)[0], cuda.decode(support, [code], W, bias)[0])


def test_the_order_by_latent_is_made_once_and_keeps_tokens_ascending() -> None:
    support = support_of((5, 21, 37))
    order = cuda.by_latent(support)
    assert cuda.by_latent(support) is order
    assert [tensor.dtype for tensor in order] == [torch.int64, torch.int32, torch.int64]
    assert torch.equal(order.tokens.long(), support.tokens[order.pairs])
    for j in range(37):
        pairs = order.pairs[order.offsets[j] : order.offsets[j + 1]]
        assert torch.equal(pairs, (support.indices == j).nonzero()[:, 0])


def test_the_same_input_gives_the_same_bits() -> None:
    batch, d_in, d_sae = shape = (3, 9, 17)

    def results() -> Iterator[Tensor]:
        support = support_of(shape)
        codes, rows = many(support, 2, torch.float32), [normal(batch, d_in, dtype=torch.float32)] * 2
        W, bias = normal(d_sae, d_in, dtype=torch.float32), normal(d_in, dtype=torch.float32)
        yield cuda.select(rows[0], W.T, W[:, 0]).values
        yield from cuda.decode(support, codes, W, bias)
        yield from cuda.value_gradients(support, rows, W)
        yield cuda.weight_gradient(support, codes, rows)
        yield cuda.sum_by_latent(support, codes[0])

    assert all(torch.equal(one, other) for one, other in zip(results(), results(), strict=True))


def dictionary(d_sae: int, d_in: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows, a gradient, second moments."""
    W = normal(d_sae, d_in, dtype=dtype)
    return (
        W / W.norm(dim=1, keepdim=True),
        normal(d_sae, d_in, dtype=dtype, seed=1),
        normal(d_sae, d_in).abs().to(dtype),
    )


@each_precision
@pytest.mark.parametrize("d_in", [1, 21, 64])
@pytest.mark.parametrize("latents", [[], [4], [6, 0, 3]], ids=str)
def test_squared_norms_are_those_of_the_definition(d_in: int, latents: list[int], dtype: torch.dtype) -> None:
    W, gradient, _ = dictionary(7, d_in, dtype)
    rows = torch.tensor(latents, dtype=torch.int64, device=DEVICE)
    for unit_rows in (None, W):
        close(cuda.squared_norms(gradient, rows, unit_rows), reference.squared_norms(gradient, rows, unit_rows))


@each_precision
@pytest.mark.parametrize("d_in", [1, 21, 64])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("latents", [[], [6, 0, 3]], ids=str)
def test_adam_updates_some_rows_as_defined_and_no_others(
    d_in: int, unit: bool, latents: list[int], dtype: torch.dtype
) -> None:
    W, gradient, moments = dictionary(7, d_in, dtype)
    rows = torch.tensor(latents, dtype=torch.int64, device=DEVICE)
    decay = torch.tensor([0.9, 0.5, 0.0][: len(latents)], dtype=dtype, device=DEVICE)
    step = AdamStep(lr=0.03, beta2=0.9, correction=0.27, eps=1e-3, scale=0.5)
    found, expected = (W.clone(), moments.clone()), (W.clone(), moments.clone())
    cuda.adam_rows_(found[0], gradient, found[1], rows, decay, step, unit=unit)
    reference.adam_rows_(expected[0], gradient, expected[1], rows, decay, step, unit=unit)
    others = [j for j in range(7) if j not in latents]
    for updated, right, before in zip(found, expected, (W, moments), strict=True):
        close(updated, right)
        assert torch.equal(updated[others], before[others])
        assert not latents or d_in == 1 or (updated[rows] != before[rows]).all()


def test_adam_writes_into_tensors_with_gaps() -> None:
    W, gradient, moments = (tensor.T.contiguous().T for tensor in dictionary(7, 21, torch.float64))
    rows, decay = torch.tensor([2, 5], device=DEVICE), torch.tensor([0.9, 0.5], device=DEVICE).double()
    step = AdamStep(lr=0.03, beta2=0.9, correction=0.27, eps=1e-3)
    expected = (W.contiguous(), moments.contiguous())
    reference.adam_rows_(expected[0], gradient, expected[1], rows, decay, step, unit=True)
    cuda.adam_rows_(W, gradient, moments, rows, decay, step, unit=True)
    close(W, expected[0])
    close(moments, expected[1])


def test_adam_keeps_the_precision_of_its_settings() -> None:
    """In float32, 1 - 0.999 is off by 5e-5; and a float64 parameter takes settings in float64."""
    for dtype in (torch.float32, torch.float64):
        W, moments = torch.zeros(1, 3, dtype=dtype, device=DEVICE), torch.zeros(1, 3, dtype=dtype, device=DEVICE)
        ones = torch.ones(1, 3, dtype=dtype, device=DEVICE)
        row = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        step = AdamStep(lr=0.1, beta2=0.999, correction=1 - 0.999, eps=1e-8)
        cuda.adam_rows_(W, ones, moments, row, ones[:, 0], step, unit=False)
        exact = 1e-7 if dtype == torch.float32 else 1e-15
        assert moments[0].tolist() == pytest.approx([1 - 0.999] * 3, rel=exact)
        assert W[0].tolist() == pytest.approx([-0.1 / (1 + 1e-8)] * 3, rel=2 * exact)


def test_adam_without_eps_does_not_divide_by_zero_past_the_rows_end() -> None:
    W, gradient, moments = dictionary(4, 5, torch.float64)
    rows = torch.tensor([1], device=DEVICE)
    cuda.adam_rows_(W, gradient, moments, rows, moments[:1, 0], AdamStep(0.01, 0.9, 0.1, eps=0.0), unit=True)
    assert W[1].norm().item() == pytest.approx(1, abs=1e-12)


def test_adam_spreads_a_nan_over_a_unit_row() -> None:
    W, gradient, moments = dictionary(4, 5, torch.float64)
    gradient[2, 1] = math.nan
    rows = torch.tensor([2, 3], device=DEVICE)
    cuda.adam_rows_(W, gradient, moments, rows, torch.ones_like(W[:2, 0]), AdamStep(0.01, 0.9, 0.1, 1e-8), unit=True)
    assert W[2].isnan().all() and W[3].isfinite().all()


def losses(x: Tensor, W_enc: Tensor, b_dec: Tensor, W_dec: Tensor, scale: Tensor, cut: Tensor) -> Tensor:
    """Two codes on one support, of which one trains the decoder; every output matters."""
    code = encode_to_support(x, W_enc, b_dec, cut)
    codes = [code.values * per_latent(scale, code.support), code.values.square()]
    one, other = decode_from_support(code.support, codes, W_dec, b_dec, trained=(True, False))
    return one.sin().sum() + (other * normal(*other.shape, seed=9)).sum() + codes[0].square().sum()


def dense_losses(x: Tensor, W_enc: Tensor, b_dec: Tensor, W_dec: Tensor, scale: Tensor, cut: Tensor) -> Tensor:
    products = (x - b_dec) @ W_enc
    values = torch.where(products > cut, products, 0)
    one, other = (values * scale) @ W_dec + b_dec, values.square() @ W_dec.detach() + b_dec.detach()
    return one.sin().sum() + (other * normal(*other.shape, seed=9)).sum() + (values * scale).square().sum()


@pytest.mark.parametrize("shape", [(6, 5, 19), (1, 3, 7), (0, 3, 7)], ids=str)
def test_gradients_through_the_primitives_are_those_of_dense_autograd(shape: tuple[int, int, int]) -> None:
    batch, d_in, d_sae = shape
    given = [normal(batch, d_in), normal(d_sae, d_in, seed=1).T, normal(d_in, seed=2), normal(d_sae, d_in, seed=3)]
    given.append(normal(d_sae, seed=4))
    cut = normal(d_sae, seed=6).abs()

    def gradients(loss: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        return [loss(*leaves, cut).detach(), *torch.autograd.grad(loss(*leaves, cut), leaves)]

    with forced("cuda"):
        found = gradients(losses)
    for one, other in zip(found, gradients(dense_losses), strict=True):
        close(one, other)


@pytest.mark.skipif(not INTERPRETED, reason="the other tests compile the kernels")
def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    """The interpreter takes what the compiler refuses; and the compiler needs no GPU."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    ran = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    kernels = {name for name, kernel in vars(cuda.programs).items() if hasattr(kernel, "arg_names")}
    assert len(kernels) == 8 and kernels == set(ran.stdout.split())


def compile_everything() -> None:
    """Compile the kernels with the arguments they are launched with, but launch none."""
    cuda._launch = compile_only
    support = Support(torch.tensor([0, 8, 16]), torch.arange(16, dtype=torch.int32) % 8, 32)
    x, W, cut = torch.ones(2, 48), torch.ones(32, 48), torch.ones(32)
    cuda.select(x, W.T, cut)
    for codes in ([cut[:16]], [cut[:16]] * 2):
        cuda.decode(support, codes, W, x[0])
        cuda.value_gradients(support, [x] * len(codes), W)
        cuda.weight_gradient(support, codes, [x] * len(codes))
    cuda.sum_by_latent(support, cut[:16])
    for unit_rows in (None, W):
        cuda.squared_norms(W, torch.tensor([1]), unit_rows)
        cuda.adam_rows_(W, W, W, torch.tensor([1]), cut[:1], AdamStep(1e-3, 0.999, 0.1, 1e-8), unit=unit_rows is W)


def compile_only(kernel: Any, number: int, *arguments: Any, **constants: Any) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    options = {name: constants.pop(name) for name in ("num_warps",) if name in constants}
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    for name, argument in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(argument, Tensor):
            signature[name] = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}[argument.dtype]
        elif isinstance(argument, float):
            signature[name] = "fp64"
            annotation = kernel.params[kernel.arg_names.index(name)].annotation
            assert annotation == "fp64", f"{name} would be rounded to float32, even for a float64 parameter"
        else:
            signature[name] = "i32"
    source = triton.compiler.ASTSource(kernel, signature, constants)
    triton.compile(source, GPUTarget("cuda", 90, 32), {**options, "enable_fp_fusion": True})
    if kernel is cuda.programs.count_kept:
        arguments[2].zero_()
    print(kernel.fn.__name__)


if __name__ == "__main__":
    compile_everything()
