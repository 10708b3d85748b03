"""Splicing and summing on a real forward pass, against loops over single tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from penstock.evaluation import Candidate, Evaluation, evaluate, record_of
from penstock.evaluation.evaluate import LOGITS
from penstock.evaluation.statistics import resample_weights
from penstock.language_models.loading import LanguageModel
from penstock.language_models.tokens import TokenRows
from penstock.metrics import metrics_of
from penstock.saes import SAE
from penstock.sparse import SparseCode

SITE = "resid_post.0"
PAD = 0

MakeSAE = Callable[..., SAE]


def replacing(name: str, x_hat: Callable[[Tensor], Tensor], d_in: int = 12, site: str = SITE) -> Candidate:
    """A candidate that reconstructs by a function of the activations; its code is one that always fires."""
    given: list[Tensor] = []

    def encode(x: Tensor) -> SparseCode:
        given[:] = [x]
        return SparseCode.from_dense(x.new_ones(len(x), 1))

    return Candidate(name, site, d_in, encode, lambda acts: x_hat(given[0]), torch.ones(1))


def damage(x: Tensor) -> Tensor:
    return 0.7 * x + 0.3 * x.roll(1, dims=1)


def metrics(evaluation: Evaluation) -> dict[str, float]:
    sums = {name: value.sum() for name, value in evaluation.sums.items()}
    return {name: value.item() for name, value in metrics_of(sums).items()}


def record(evaluation: Evaluation) -> dict:
    weights = resample_weights(len(evaluation.sums["tokens"]), 20, seed=0)
    return record_of(evaluation, weights, {}, vocab_size=100)


def test_identity_costs_nothing(lm: LanguageModel, rows: TokenRows) -> None:
    found = metrics(evaluate(lm, rows, [replacing("identity", lambda x: x)])["identity"])
    assert found["delta_ce"] == 0
    assert found["kl"] == 0
    assert found["loss_recovered"] == found["loss_recovered_mean"] == 1
    assert found["fvu"] == found["mse"] == 0


def test_zero_recovers_nothing_of_zero_ablation(lm: LanguageModel, rows: TokenRows) -> None:
    found = metrics(evaluate(lm, rows, [replacing("zero", torch.zeros_like)])["zero"])
    assert found["loss_recovered"] == pytest.approx(0, abs=1e-9)
    assert found["ce_spliced"] == found["ce_zero"] > found["ce_clean"]


def test_the_mean_recovers_nothing_of_mean_ablation(lm: LanguageModel, rows: TokenRows, counted: Tensor) -> None:
    mean = counted.double().mean(dim=0).float()
    found = metrics(evaluate(lm, rows, [replacing("mean", lambda x: mean.expand_as(x))])["mean"])
    assert found["loss_recovered_mean"] == pytest.approx(0, abs=1e-9)
    assert found["fvu"] == pytest.approx(1, rel=1e-6)
    assert found["ce_spliced"] == found["ce_mean"] > found["ce_clean"]


def spliced_logits(lm: LanguageModel, rows: TokenRows, x_hat: Tensor | None) -> np.ndarray:
    """Logits with `x_hat` in place of the first layer's output, token by token where the mask is True."""

    def replace(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0].clone()
        counting = [(s, p) for s in range(len(rows.mask)) for p in range(11) if rows.mask[s, p]]
        for index, (sequence, position) in enumerate(counting):
            if x_hat is not None:
                hidden[sequence, position] = x_hat[index]
        return (hidden, *args[1:])

    handle = lm.module.get_submodule("model.layers.1").register_forward_pre_hook(replace)
    with torch.no_grad():
        logits = lm.module(input_ids=rows.tokens, use_cache=False).logits
    handle.remove()
    return logits.double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def test_losses_and_divergence_are_those_of_a_loop_over_tokens(
    lm: LanguageModel, rows: TokenRows, counted: Tensor
) -> None:
    found = evaluate(lm, rows, [replacing("damaged", damage)], batch_rows=4)["damaged"].sums

    mean = counted.double().mean(dim=0).float().expand_as(counted)
    runs = {
        "ce_clean": spliced_logits(lm, rows, None),
        "ce_spliced": spliced_logits(lm, rows, damage(counted)),
        "ce_zero": spliced_logits(lm, rows, torch.zeros_like(counted)),
        "ce_mean": spliced_logits(lm, rows, mean),
    }
    expected = {name: np.zeros(6) for name in (*runs, "kl", "ce_tokens")}
    for sequence in range(6):
        for position in range(10):
            # A prediction counts when its position and its target do.
            if not (rows.mask[sequence, position] and rows.mask[sequence, position + 1]):
                continue
            target = int(rows.tokens[sequence, position + 1])
            logs = {name: log_softmax(logits[sequence, position]) for name, logits in runs.items()}
            for name in runs:
                expected[name][sequence] -= logs[name][target]
            clean, spliced = logs["ce_clean"], logs["ce_spliced"]
            expected["kl"][sequence] += (np.exp(clean) * (clean - spliced)).sum()
            expected["ce_tokens"][sequence] += 1
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert expected["ce_tokens"].tolist() == [9, 7, 9, 9, 5, 0]
    assert expected["kl"].sum() > 0.5


def test_sums_about_the_reconstruction_run_over_the_positions_that_count(
    lm: LanguageModel, rows: TokenRows, counted: Tensor
) -> None:
    found = evaluate(lm, rows, [replacing("damaged", damage)], batch_rows=4)["damaged"]
    x, x_hat = counted.double().numpy(), damage(counted).double().numpy()
    assert found.sums["tokens"].tolist() == [10, 9, 10, 10, 6, 1]
    assert metrics(found)["mse"] == pytest.approx(((x - x_hat) ** 2).sum(axis=1).mean(), rel=1e-6)
    assert metrics(found)["fvu"] == pytest.approx(((x - x_hat) ** 2).mean() / x.var(axis=0).mean(), rel=1e-6)


def test_positions_that_do_not_count_keep_their_activation_in_every_run(
    lm: LanguageModel, rows: TokenRows, counted: Tensor
) -> None:
    reached_next_layer: list[Tensor] = []

    def watch(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        reached_next_layer.append(args[0].clone())

    handle = lm.module.get_submodule("model.layers.1").register_forward_pre_hook(watch)
    evaluate(lm, rows, [replacing("damaged", damage)])
    handle.remove()

    clean, zero, mean, damaged = reached_next_layer
    for run in (zero, mean, damaged):
        assert torch.equal(run[~rows.mask], clean[~rows.mask])
    assert torch.equal(clean[rows.mask], counted)
    assert (zero[rows.mask] == 0).all()
    torch.testing.assert_close(mean[rows.mask], counted.mean(dim=0).expand_as(counted))
    assert torch.equal(damaged[rows.mask], damage(counted))


def padded(rows: TokenRows, columns: int, num_rows: int) -> TokenRows:
    shape = (len(rows.tokens) + num_rows, rows.tokens.shape[1] + columns)
    tokens, mask = torch.full(shape, PAD), torch.zeros(shape, dtype=torch.bool)
    tokens[: len(rows.tokens), : rows.tokens.shape[1]] = rows.tokens
    mask[: len(rows.tokens), : rows.tokens.shape[1]] = rows.mask
    return TokenRows(tokens, mask)


@pytest.mark.parametrize(("columns", "num_rows"), [(3, 0), (0, 2), (5, 3)])
def test_padding_changes_nothing(
    lm: LanguageModel, rows: TokenRows, columns: int, num_rows: int, random_sae: MakeSAE
) -> None:
    candidate = Candidate.of("sae", SITE, random_sae("gated", 12, 20, dtype=torch.float32))
    before = evaluate(lm, rows, [candidate], batch_rows=4)["sae"]
    after = evaluate(lm, padded(rows, columns, num_rows), [candidate], batch_rows=4)["sae"]
    assert metrics(after) == pytest.approx(metrics(before), rel=1e-5, abs=1e-6)
    assert torch.equal(after.firing, before.firing)
    assert torch.equal(after.l0_histogram, before.l0_histogram)


@pytest.mark.parametrize("batch_rows", [1, 4, 100])
def test_the_result_depends_neither_on_the_batches_nor_on_the_order_of_rows(
    lm: LanguageModel, rows: TokenRows, batch_rows: int, random_sae: MakeSAE
) -> None:
    candidate = Candidate.of("sae", SITE, random_sae("gated", 12, 20, dtype=torch.float32))
    before = evaluate(lm, rows, [candidate], batch_rows=2)["sae"]
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    shuffled = TokenRows(rows.tokens[order], rows.mask[order])
    after = evaluate(lm, shuffled, [candidate], batch_rows=batch_rows)["sae"]
    assert metrics(after) == pytest.approx(metrics(before), rel=1e-5, abs=1e-6)
    assert torch.equal(after.firing, before.firing)
    for name, value in before.sums.items():
        torch.testing.assert_close(after.sums[name], value[order], rtol=1e-4, atol=1e-4, msg=name)


def test_firing_counts_and_l0_are_those_of_a_loop_over_tokens(
    lm: LanguageModel, rows: TokenRows, counted: Tensor, random_sae: MakeSAE
) -> None:
    sae = random_sae("gated", 12, 20, dtype=torch.float32)
    found = evaluate(lm, rows, [Candidate.of("sae", SITE, sae)], batch_rows=4)["sae"]

    firing, histogram, l1 = [0] * 20, [0] * 21, 0.0
    for x in counted:
        acts = sae.encode(x[None])[0].tolist()
        firing = [count + (act != 0) for count, act in zip(firing, acts, strict=True)]
        histogram[sum(act != 0 for act in acts)] += 1
        l1 += sum(act * row.norm().item() for act, row in zip(acts, sae.W_dec, strict=True))
    assert found.firing.tolist() == firing
    assert found.l0_histogram.tolist() == histogram
    assert metrics(found)["l0"] == pytest.approx(sum(firing) / len(counted))
    assert metrics(found)["l1"] == pytest.approx(l1 / len(counted), rel=1e-5)
    assert 0 < sum(firing) < 20 * len(counted)


def test_a_forward_pass_makes_no_more_logits_than_allowed(
    lm: LanguageModel, rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    logits = lm.logits

    def watched(tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(len(tokens))
        return logits(tokens, *args, **kwargs)

    monkeypatch.setattr(lm, "logits", watched)
    for rows_allowed, expected in ((0.5, {1}), (2.9, {2}), (6, {6})):
        seen.clear()
        monkeypatch.setitem(LOGITS, "cpu", int(rows_allowed * 11 * 24))
        evaluate(lm, rows, [replacing("damaged", damage)])
        assert set(seen) == expected


def test_candidates_at_several_sites_are_measured_as_if_alone(
    lm: LanguageModel, rows: TokenRows, random_sae: MakeSAE
) -> None:
    candidates = [
        Candidate.of("deep", "mlp_act.1", random_sae("relu", 16, 20, dtype=torch.float32)),
        Candidate.of("sae", SITE, random_sae("gated", 12, 20, dtype=torch.float32)),
        replacing("damaged", damage, site="attn_out.1"),
        replacing("identity", lambda x: x),
    ]
    together = evaluate(lm, rows, candidates)
    assert list(together) == ["deep", "sae", "damaged", "identity"]
    for candidate in candidates:
        alone = evaluate(lm, rows, [candidate])[candidate.name]
        assert metrics(together[candidate.name]) == pytest.approx(metrics(alone), rel=1e-12, nan_ok=True)


def test_a_site_that_does_not_matter_has_no_loss_recovered_and_the_record_says_why(
    lm_without_mlp: LanguageModel, rows: TokenRows
) -> None:
    candidate = replacing("damaged", damage, d_in=16, site="mlp_act.1")
    found = record(evaluate(lm_without_mlp, rows, [candidate])["damaged"])
    assert found["ce_zero"] == found["ce_mean"] == found["ce_clean"]
    assert found["loss_recovered"] is None
    assert found["loss_recovered_mean"] is None
    assert found["intervals"]["loss_recovered"] is None
    assert [warning.split(":")[0] for warning in found["warnings"]] == [
        "loss_recovered is undefined",
        "loss_recovered_mean is undefined",
        "few sequences",
    ]


def test_identity_costs_nothing_in_bfloat16_either(lm_bfloat16: LanguageModel, rows: TokenRows) -> None:
    found = metrics(evaluate(lm_bfloat16, rows, [replacing("identity", lambda x: x)])["identity"])
    assert found["delta_ce"] == found["kl"] == found["mse"] == 0


def test_a_model_in_bfloat16_gives_the_metrics_of_float32_within_its_precision(
    lm: LanguageModel, lm_bfloat16: LanguageModel, rows: TokenRows
) -> None:
    exact, rounded = (
        metrics(evaluate(model, rows, [replacing("damaged", damage)])["damaged"]) for model in (lm, lm_bfloat16)
    )
    assert rounded == pytest.approx(exact, rel=0.05)


def test_the_dtype_an_sae_is_stored_in_does_not_matter(lm: LanguageModel, rows: TokenRows, random_sae: MakeSAE) -> None:
    sae = random_sae("gated", 12, 20, dtype=torch.bfloat16)
    same = random_sae("gated", 12, 20, dtype=torch.bfloat16).double()
    candidates = [Candidate.of("bfloat16", SITE, sae), Candidate.of("float64", SITE, same)]
    found = evaluate(lm, rows, candidates)
    assert metrics(found["bfloat16"]) == metrics(found["float64"])
    assert sae.W_dec.dtype == torch.bfloat16


def test_evaluating_changes_neither_the_model_nor_the_tokens(lm: LanguageModel, rows: TokenRows) -> None:
    before, tokens = lm.logits(rows.tokens), rows.tokens.clone()
    evaluate(lm, rows, [replacing("damaged", damage)])
    assert torch.equal(lm.logits(rows.tokens), before)
    assert torch.equal(rows.tokens, tokens)


def test_an_sae_of_another_width_is_refused_by_name(lm: LanguageModel, rows: TokenRows, random_sae: MakeSAE) -> None:
    candidate = Candidate.of("wide", SITE, random_sae("relu", 13, 20, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"wide takes .* width 13, but resid_post\.0 of tiny-llama has width 12"):
        evaluate(lm, rows, [candidate])


def test_two_candidates_of_one_name_are_refused(lm: LanguageModel, rows: TokenRows) -> None:
    with pytest.raises(ValueError, match="more than one candidate is called damaged"):
        evaluate(lm, rows, [replacing("damaged", damage), replacing("damaged", torch.zeros_like)])


@pytest.mark.parametrize("kept", [[], [(0, 3)], [(0, 3), (1, 4), (1, 6)]], ids=["none", "one", "apart"])
def test_a_mask_without_a_single_prediction_is_refused(
    lm: LanguageModel, rows: TokenRows, kept: list[tuple[int, int]]
) -> None:
    mask = torch.zeros_like(rows.mask)
    for sequence, position in kept:
        mask[sequence, position] = True
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        evaluate(lm, TokenRows(rows.tokens, mask), [replacing("damaged", damage)])


def test_an_evaluation_holds_its_sums_on_the_cpu_in_float64(lm: LanguageModel, rows: TokenRows) -> None:
    found = evaluate(lm, rows, [replacing("damaged", damage)])["damaged"]
    assert {(value.dtype, value.device.type) for value in found.sums.values()} == {(torch.float64, "cpu")}
    assert found.firing.dtype == found.l0_histogram.dtype == torch.int64


class Elsewhere(Tensor):
    """A tensor that says it lives on another device, on a machine that has only one."""

    DEVICE = torch.device("cuda:7")

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.DEVICE


class OtherDevice(TorchFunctionMode):
    """Lets tensors be moved to that device and made there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to and Elsewhere.DEVICE in args[1:2]:
            return args[0].to(*args[2:], **kwargs).as_subclass(Elsewhere)
        if kwargs.get("device") == Elsewhere.DEVICE:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def test_activations_are_moved_to_where_the_sae_lives(
    lm: LanguageModel, rows: TokenRows, random_sae: Callable[..., Any]
) -> None:
    sae = random_sae("relu", lm.d_in("resid_post.0"), 12, dtype=torch.float32)
    here = Candidate.of("here", "resid_post.0", sae)
    seen: list[torch.device] = []

    def encode(x: Tensor) -> Any:
        seen.append(x.device)
        return here.encode(x.as_subclass(Tensor))

    there = here._replace(name="there", encode=encode, decoder_norm=here.decoder_norm.as_subclass(Elsewhere))
    expected = evaluate(lm, rows, [here])["here"]

    with OtherDevice():
        found = evaluate(lm, rows, [there])["there"]

    assert set(seen) == {Elsewhere.DEVICE}
    for name, sums in expected.sums.items():
        assert torch.equal(found.sums[name].as_subclass(Tensor), sums), name
