"""A forward pass that starts at a site gives the same logits as one that starts at the tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from penstock.language_models.loading import LanguageModel
from penstock.language_models.prefix import recorded, replayed


def damage(activation: Tensor) -> Tensor:
    return 0.7 * activation + 0.3 * activation.roll(1, dims=-1)


def test_starting_at_any_site_of_any_family_gives_the_same_logits(lm: LanguageModel, tokens: Tensor) -> None:
    for site in lm.site_names:
        prefix = lm.prefix(tokens, site)
        assert (prefix is None) == (site.endswith(".0") and site != "resid_post.0"), site
        whole = lm.logits(tokens, {site: damage})
        for _ in range(2):  # the prefix survives its use
            assert torch.equal(lm.logits(tokens, {site: damage}, after=prefix), whole), site
    assert not torch.equal(lm.logits(tokens, {"resid_post.1": damage}), lm.logits(tokens))


def test_blocks_before_the_site_do_not_run_and_run_again_afterwards(
    load_tiny: Callable[..., LanguageModel], count_calls: Callable[[list[nn.Module]], list[int]], tokens: Tensor
) -> None:
    model = load_tiny("gpt2")
    attention = [model.module.get_submodule(f"transformer.h.{layer}.attn") for layer in range(3)]
    prefix = model.prefix(tokens, "mlp_act.1")
    whole_block = model.prefix(tokens, "resid_post.1")
    counts = count_calls(attention)

    model.logits(tokens, {"mlp_act.1": damage}, after=prefix)
    assert counts == [0, 1, 1]

    model.logits(tokens, {"resid_post.1": damage}, after=whole_block)
    assert counts == [0, 1, 2]

    model.logits(tokens)
    assert counts == [1, 2, 3]


def test_a_prefix_is_computed_without_the_blocks_behind_it(
    load_tiny: Callable[..., LanguageModel], count_calls: Callable[[list[nn.Module]], list[int]], tokens: Tensor
) -> None:
    model = load_tiny("llama")
    model.d_in("attn_z.2")  # the first question about a site runs the whole model once
    counts = count_calls([model.module.get_submodule(f"model.layers.{layer}.mlp") for layer in range(3)])
    model.prefix(tokens, "attn_z.2")
    assert counts == [1, 1, 0]


def test_a_module_by_its_path_has_the_prefix_of_its_block(gpt2: LanguageModel, tokens: Tensor) -> None:
    by_path = gpt2.prefix(tokens, "transformer.h.2.ln_1.output")
    assert by_path is not None
    assert by_path.blocks == ("transformer.h.0", "transformer.h.1")
    assert gpt2.prefix(tokens, "transformer.ln_f.input") is None


def test_a_model_whose_blocks_are_not_known_has_no_prefix(
    load_tiny: Callable[..., LanguageModel], tokens: Tensor
) -> None:
    model = load_tiny("gpt2")
    model.sites = {}
    assert model.prefix(tokens, "transformer.h.2.mlp.output") is None


def test_a_model_is_left_as_it_was_even_after_an_error(load_tiny: Callable[..., LanguageModel], tokens: Tensor) -> None:
    model = load_tiny("gpt2")
    block = model.module.get_submodule("transformer.h.0")
    own = block.forward
    block.forward = own  # as accelerate does for weights that lie elsewhere
    before = model.logits(tokens)
    prefix = model.prefix(tokens, "resid_pre.1")

    def fail(activation: Tensor) -> Tensor:
        raise RuntimeError("the edit broke")

    with pytest.raises(RuntimeError, match="the edit broke"):
        model.logits(tokens, {"resid_pre.1": fail}, after=prefix)

    assert block.__dict__["forward"] == own
    assert not any("forward" in part.__dict__ for part in block.modules() if part is not block)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())
    assert torch.equal(model.logits(tokens), before)


def test_an_edit_inside_the_prefix_is_an_error(gpt2: LanguageModel, tokens: Tensor) -> None:
    prefix = gpt2.prefix(tokens, "resid_post.1")
    with pytest.raises(ValueError, match=r"never computes 'mlp_out\.0'"):
        gpt2.logits(tokens, {"mlp_out.0": damage}, after=prefix)


def test_a_prefix_is_kept_though_the_model_goes_on_to_change_it_in_place() -> None:
    class AddsInPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.block(x.clone())
            hidden += 1
            return hidden

    model = AddsInPlace()
    with recorded(model, ("block",)) as found:
        model(torch.zeros(1, 2, 3))
    for _ in range(2):
        with replayed(model, found[0]):
            assert torch.equal(model(torch.full((1, 2, 3), 7.0)), torch.ones(1, 2, 3))
