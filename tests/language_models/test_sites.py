"""The sites of every family, checked against the models' own arithmetic."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from penstock.language_models.loading import LanguageModel
from penstock.language_models.sites import Site, find_site, named_sites

if TYPE_CHECKING:
    from conftest import Family

NUM_LAYERS = 3
KINDS = ("resid_pre", "attn_z", "attn_out", "mlp_act", "mlp_out", "resid_post")


def zeros(activation: Tensor) -> Tensor:
    return torch.zeros_like(activation)


def block(model: LanguageModel, family: "Family", layer: int) -> nn.Module:
    return model.module.get_submodule(f"{family.blocks}.{layer}")


def test_every_family_has_the_six_sites_in_every_layer(lm: LanguageModel) -> None:
    assert lm.site_names == [f"{kind}.{layer}" for layer in range(NUM_LAYERS) for kind in KINDS]


def test_splicing_an_activation_back_in_reproduces_the_logits_bit_for_bit(lm: LanguageModel, tokens: Tensor) -> None:
    clean = lm.logits(tokens)
    acts = lm.activations(tokens, lm.site_names)

    for site in lm.site_names:
        assert torch.equal(lm.logits(tokens, {site: lambda _, site=site: acts[site]}), clean), site
    assert torch.equal(lm.logits(tokens, {site: lambda x: x for site in lm.site_names}), clean)


def test_the_parts_of_a_block_add_up(lm: LanguageModel, family: "Family", tokens: Tensor) -> None:
    acts = lm.activations(tokens, lm.site_names)

    for layer in range(NUM_LAYERS):
        pre, attn, mlp, post = (acts[f"{kind}.{layer}"] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        if family.is_sum:
            torch.testing.assert_close(pre + attn + mlp, post)
        else:
            norms: Any = block(lm, family, layer)
            after_attention = norms.self_attn_layer_norm(pre + attn)
            torch.testing.assert_close(norms.final_layer_norm(after_attention + mlp), post)
        assert attn.abs().mean() > 0.01
        assert mlp.abs().mean() > 0.01


def test_the_residual_stream_is_what_transformers_calls_hidden_states(lm: LanguageModel, tokens: Tensor) -> None:
    acts = lm.activations(tokens, lm.site_names)

    hidden_states = lm.module(input_ids=tokens, output_hidden_states=True).hidden_states

    for layer in range(NUM_LAYERS):
        assert torch.equal(acts[f"resid_pre.{layer}"], hidden_states[layer])
    for layer in range(NUM_LAYERS - 1):  # the last one comes after the final norm
        assert torch.equal(acts[f"resid_post.{layer}"], hidden_states[layer + 1])


@pytest.mark.parametrize(("read", "projection"), [("attn_z", "attn_projection"), ("mlp_act", "mlp_projection")])
def test_heads_and_neurons_are_what_the_output_projections_read(
    lm: LanguageModel, family: "Family", tokens: Tensor, read: str, projection: str
) -> None:
    path = f"{family.blocks}.1.{getattr(family, projection)}"
    acts = lm.activations(tokens, [f"{read}.1", f"{path}.output"])
    module: Any = lm.module.get_submodule(path)
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T  # GPT-2's Conv1D

    projected = acts[f"{read}.1"] @ weight.T + (0 if module.bias is None else module.bias)

    torch.testing.assert_close(projected, acts[f"{path}.output"])


@pytest.mark.parametrize("kind", ["attn_z", "attn_out", "mlp_act", "mlp_out"])
def test_splicing_zeros_at_a_part_equals_zeroing_its_output_projection(
    family_name: str, family: "Family", load_tiny: Callable[..., LanguageModel], tokens: Tensor, kind: str
) -> None:
    model = load_tiny(family_name)
    spliced = model.logits(tokens, {f"{kind}.1": zeros})
    clean = model.logits(tokens)
    projection: Any = block(model, family, 1).get_submodule(
        family.attn_projection if kind.startswith("attn") else family.mlp_projection
    )

    with torch.no_grad():
        projection.weight.zero_()
        if kind.endswith("out") and projection.bias is not None:
            projection.bias.zero_()

    torch.testing.assert_close(spliced, model.logits(tokens))
    assert (spliced - clean).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post"])
def test_splicing_zeros_in_the_residual_stream_equals_zeroing_a_block_by_hand(
    family_name: str, family: "Family", load_tiny: Callable[..., LanguageModel], tokens: Tensor, kind: str
) -> None:
    model = load_tiny(family_name)
    spliced = model.logits(tokens, {f"{kind}.1": zeros})
    target: Any = block(model, family, 1)
    original = target.forward

    def forward(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        if kind == "resid_pre":
            return original(hidden_states * 0, *args, **kwargs)
        return original(hidden_states, *args, **kwargs) * 0

    target.forward = forward

    assert torch.equal(spliced, model.logits(tokens))


def test_widths_are_those_of_the_config(lm: LanguageModel) -> None:
    config = lm.module.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    widths = {kind: lm.d_in(f"{kind}.1") for kind in KINDS}

    assert widths == dict.fromkeys(KINDS, config.hidden_size) | {
        "attn_z": config.num_attention_heads * head_dim,
        "mlp_act": 24,
    }


def test_gated_neurons_are_taken_after_the_gate(load_tiny: Callable[..., LanguageModel], tokens: Tensor) -> None:
    model = load_tiny("llama")
    mlp = "model.layers.1.mlp"

    acts = model.activations(tokens, ["mlp_act.1", f"{mlp}.gate_proj.output", f"{mlp}.up_proj.output"])

    gated = nn.functional.silu(acts[f"{mlp}.gate_proj.output"]) * acts[f"{mlp}.up_proj.output"]
    torch.testing.assert_close(acts["mlp_act.1"], gated)


def test_a_site_is_also_the_path_of_a_module(gpt2: LanguageModel, tokens: Tensor) -> None:
    acts = gpt2.activations(tokens, ["transformer.h.1.mlp.c_proj.input", "mlp_act.1", "transformer.ln_f.input"])

    assert torch.equal(acts["transformer.h.1.mlp.c_proj.input"], acts["mlp_act.1"])
    assert torch.equal(acts["transformer.ln_f.input"], gpt2.activations(tokens, ["resid_post.2"])["resid_post.2"])
    assert find_site("transformer.wte.output", gpt2.sites, gpt2.module) == Site("transformer.wte", "output")


def test_an_unknown_site_is_told_the_sites_there_are(gpt2: LanguageModel, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"no site 'resid_pots\.1'") as error:
        gpt2.activations(tokens, ["resid_pots.1"])

    assert "Did you mean 'resid_post.1'?" in str(error.value)
    assert "resid_pre.0 ... resid_pre.2, attn_z.0 ... attn_z.2" in str(error.value)
    assert re.search(r"for example 'transformer\.h\.2\..*\.output'", str(error.value))


@pytest.mark.parametrize("site", ["resid_post.3", "resid_post.-1", "resid_post", "transformer.h.0.mlp", ".output"])
def test_layers_out_of_range_and_paths_without_a_side_are_unknown_sites(gpt2: LanguageModel, site: str) -> None:
    with pytest.raises(ValueError, match="This model has no site"):
        gpt2.d_in(site)


def test_a_mistyped_path_is_told_the_nearest_module(gpt2: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'transformer\.h\.0\.mlp\.c_proj\.input'"):
        gpt2.d_in("transformer.h.0.mlp.cproj.input")


def test_an_unknown_family_has_module_paths_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    named = named_sites("a_family_of_next_year", num_layers=2)

    assert named == {}
    with pytest.raises(ValueError, match="Its sites are the input or output of any of its modules"):
        find_site("resid_post.0", named, model)
    assert find_site("0.output", named, model) == Site("0", "output")
