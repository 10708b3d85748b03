"""How activations are read and replaced, whatever the family."""

from collections.abc import Callable

import pytest
import torch
from tiny_families import FAMILIES
from torch import Tensor, nn

from penstock.language_models.hooks import captured, spliced
from penstock.language_models.loading import LanguageModel
from penstock.language_models.sites import Site


def num_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_blocks_after_the_deepest_site_are_never_called(
    load_tiny: Callable[..., LanguageModel], count_calls: Callable[[list[nn.Module]], list[int]], tokens: Tensor
) -> None:
    model = load_tiny("gpt2")
    model.d_in("resid_post.1")  # the first question about a site runs the whole model once
    blocks, head = model.module.get_submodule("transformer.h"), model.module.get_submodule("lm_head")
    counts = count_calls([*blocks.children(), head])

    model.activations(tokens, ["resid_post.1", "attn_z.0"])
    assert counts == [1, 1, 0, 0]

    model.activations(tokens, ["resid_pre.1"])
    assert counts == [2, 1, 0, 0]

    model.activations(tokens, ["resid_post.2"])
    assert counts == [3, 2, 1, 0]


@pytest.mark.parametrize(
    "family_name", [name for name, family in FAMILIES.items() if "mlp_act.0" in family.sites], scope="session"
)
def test_within_a_block_too_nothing_runs_after_the_deepest_site(
    family_name: str,
    load_tiny: Callable[..., LanguageModel],
    count_calls: Callable[[list[nn.Module]], list[int]],
    tokens: Tensor,
) -> None:
    model = load_tiny(family_name)
    model.d_in("mlp_act.0")
    deepest = model.module.get_submodule(model.sites["mlp_act.0"].module)
    counts = count_calls([deepest])

    model.activations(tokens, ["resid_pre.0", "mlp_act.0"])

    assert counts == [0]


def test_hooks_are_gone_afterwards_also_after_errors(gpt2: LanguageModel, tokens: Tensor) -> None:
    before = num_hooks(gpt2.module)

    def fail(activation: Tensor) -> Tensor:
        raise RuntimeError("the edit broke")

    gpt2.activations(tokens, gpt2.site_names)
    gpt2.logits(tokens, {"resid_post.1": lambda x: x})
    with pytest.raises(RuntimeError, match="the edit broke"):
        gpt2.logits(tokens, {"attn_z.0": lambda x: x, "resid_post.1": fail})
    with pytest.raises(ValueError, match="no site"):
        gpt2.logits(tokens, {"resid_post.1": fail, "nowhere": fail})

    assert num_hooks(gpt2.module) == before


def test_activations_come_in_the_order_asked_for_without_gradients(
    load_tiny: Callable[..., LanguageModel], tokens: Tensor
) -> None:
    model = load_tiny("gpt2")
    model.module.requires_grad_(True)

    acts = model.activations(tokens, ["resid_post.2", "resid_pre.0", "mlp_act.1", "resid_pre.0"])

    assert list(acts) == ["resid_post.2", "resid_pre.0", "mlp_act.1"]
    assert not any(activation.requires_grad for activation in acts.values())


def test_the_flattened_mlp_of_opt_keeps_rows_apart(load_tiny: Callable[..., LanguageModel], tokens: Tensor) -> None:
    model = load_tiny("opt")

    both = model.activations(tokens, ["mlp_act.1"])["mlp_act.1"]

    assert both.shape == (2, 9, 24)
    for row in range(2):
        alone = model.activations(tokens[row : row + 1], ["mlp_act.1"])["mlp_act.1"]
        torch.testing.assert_close(both[row : row + 1], alone)


def test_an_edit_at_one_position_changes_nothing_before_it(lm: LanguageModel, tokens: Tensor) -> None:
    def edit(activation: Tensor) -> Tensor:
        return torch.cat([activation[:, :5], activation[:, 5:].roll(1, dims=-1)], dim=1)

    changes = (lm.logits(tokens, {"resid_post.0": edit}) - lm.logits(tokens)).abs().amax(dim=(0, 2))

    assert changes[:5].max() < 1e-5
    assert changes[5] > 1e-3


def test_edits_at_several_sites_apply_from_the_first_to_the_last(gpt2: LanguageModel, tokens: Tensor) -> None:
    seen = []

    def note(activation: Tensor) -> Tensor:
        seen.append(activation.abs().max().item())
        return torch.zeros_like(activation)

    gpt2.logits(tokens, {"resid_pre.2": note, "resid_post.1": note})

    assert seen[0] > 0
    assert seen[1] == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x[:, :-1], r"shape \[2, 9, 16\].*; got torch.float32 of shape \[2, 8, 16\]"),
        (lambda x: x.flatten(0, 1), r"got torch.float32 of shape \[18, 16\]"),
        (lambda x: x > 0, "got torch.bool"),
        (lambda x: None, "must return a tensor, got NoneType"),
    ],
)
def test_an_edit_that_returns_something_else_is_an_error(
    gpt2: LanguageModel, tokens: Tensor, edit: Callable, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"edit at 'resid_post\.1'.*{message}"):
        gpt2.logits(tokens, {"resid_post.1": edit})


def test_gradients_reach_what_an_edit_returns(gpt2: LanguageModel, tokens: Tensor) -> None:
    scale = torch.ones((), requires_grad=True)

    gpt2.logits(tokens, {"mlp_out.1": lambda x: x * scale}).logsumexp(dim=-1).sum().backward()

    assert scale.grad is not None
    assert scale.grad.abs() > 0


def test_sites_that_never_run_are_an_error(gpt2: LanguageModel, tokens: Tensor) -> None:
    module = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    sites = {"here": Site("used", "output"), "there": Site("unused", "output")}
    x = torch.ones(1, 3, 2)

    with (
        pytest.raises(ValueError, match="never computes 'there'"),
        captured(module, sites, (1, 3)),
    ):
        module["used"](x)
    with (
        pytest.raises(ValueError, match="never computes 'there'"),
        spliced(module, sites, {"here": lambda x: x, "there": lambda x: x}, (1, 3)),
    ):
        module["used"](x)


@pytest.mark.parametrize("site", ["transformer.wte.input", "transformer.wpe.output", "transformer.output"])
def test_tensors_that_are_no_activations_are_an_error(gpt2: LanguageModel, tokens: Tensor, site: str) -> None:
    with pytest.raises(ValueError, match=f"Site {site!r}"):
        gpt2.activations(tokens, [site])


def test_heads_in_axes_of_their_own_are_laid_side_by_side(
    load_tiny: Callable[..., LanguageModel], tokens: Tensor
) -> None:
    model = load_tiny("qwen3")
    site = "model.layers.1.self_attn.q_norm.output"

    assert model.activations(tokens, [site])[site].shape == (2, 9, 4 * 8)
    assert torch.equal(model.logits(tokens, {site: lambda x: x}), model.logits(tokens))


def test_inputs_given_by_keyword_can_be_read_and_replaced(
    load_tiny: Callable[..., LanguageModel], tokens: Tensor
) -> None:
    model = load_tiny("llama")
    keyword, site = "model.layers.1.self_attn.input", "model.layers.1.self_attn.q_proj.input"

    acts = model.activations(tokens, [keyword, site])

    assert torch.equal(acts[keyword], acts[site])
    zeroed = model.logits(tokens, {keyword: torch.zeros_like})
    torch.testing.assert_close(zeroed, model.logits(tokens, {"attn_out.1": torch.zeros_like}))


def test_an_activation_is_kept_though_the_model_goes_on_to_change_it_in_place() -> None:
    class AddsInPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Identity()
            self.second = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x.clone())
            hidden += 1
            return self.second(hidden)

    model = AddsInPlace()
    sites = {"first": Site("first", "output"), "second": Site("second", "output")}

    with captured(model, sites, (1, 2)) as found:
        model(torch.zeros(1, 2, 3))

    assert torch.equal(found["first"], torch.zeros(1, 2, 3))
    assert torch.equal(found["second"], torch.ones(1, 2, 3))


def test_what_an_edit_returns_stays_as_it_is_in_every_family(lm: LanguageModel, tokens: Tensor) -> None:
    """Falcon and Llama 4 add to it in place."""
    sites = [site for site in lm.site_names if site.endswith(".1")]
    acts = lm.activations(tokens, sites)
    for site in sites:
        damaged = acts[site] * 0.5
        kept = damaged.clone()
        first = lm.logits(tokens, {site: lambda _, damaged=damaged: damaged})
        assert torch.equal(damaged, kept), site
        assert torch.equal(lm.logits(tokens, {site: lambda _, damaged=damaged: damaged}), first), site


def test_a_module_that_runs_again_is_an_error_in_the_pass_itself() -> None:
    class Repeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(3, 3)
            self.last = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.step(self.step(x)))

    model = Repeats()
    sites = {"step": Site("step", "output"), "last": Site("last", "output")}
    x = torch.zeros(1, 2, 3)

    with pytest.raises(ValueError, match="Site 'step': the module runs more"), captured(model, sites, (1, 2)):
        model(x)
    edits = {"step": lambda x: x, "last": lambda x: x}
    with pytest.raises(ValueError, match="Site 'step': the module runs more"), spliced(model, sites, edits, (1, 2)):
        model(x)
