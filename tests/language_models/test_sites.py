"""The sites of every family, checked against the models' own arithmetic."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_families import FAMILIES, KINDS, NUM_LAYERS, Family
from torch import Tensor, nn

from penstock.language_models import families
from penstock.language_models.loading import LanguageModel
from penstock.language_models.sites import Site, find_site, named_sites, site_name

PARTS = [
    (name, kind)
    for name, family in FAMILIES.items()
    for kind, projection in zip(KINDS[1:5], [family.attn_projection] * 2 + [family.mlp_projection] * 2, strict=True)
    if projection is not None
]
"""Families and the parts whose output projection is one module in layer 1."""


def zeros(activation: Tensor) -> Tensor:
    return torch.zeros_like(activation)


def block(model: LanguageModel, family: Family, layer: int) -> nn.Module:
    return model.module.get_submodule(f"{family.blocks}.{layer}")


def test_a_family_has_its_sites_in_every_layer(lm: LanguageModel, family: Family) -> None:
    assert lm.site_names == family.sites


def test_every_family_of_the_table_is_tested(model_types: set[str]) -> None:
    assert model_types == set(families.FAMILIES)


def test_splicing_an_activation_back_in_reproduces_the_logits_bit_for_bit(lm: LanguageModel, tokens: Tensor) -> None:
    clean = lm.logits(tokens)
    acts = lm.activations(tokens, lm.site_names)

    for site in lm.site_names:
        assert torch.equal(lm.logits(tokens, {site: lambda _, site=site: acts[site]}), clean), site
    assert torch.equal(lm.logits(tokens, {site: lambda x: x for site in lm.site_names}), clean)


def test_the_parts_of_a_block_add_up(lm: LanguageModel, family: Family, tokens: Tensor) -> None:
    acts = lm.activations(tokens, lm.site_names)

    for layer in range(NUM_LAYERS):
        if f"attn_out.{layer}" not in acts:
            continue
        pre, attn, mlp, post = (acts[f"{kind}.{layer}"] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        parts: Any = block(lm, family, layer)
        if family.config == "OPTConfig" and not family.is_sum:
            after_attention = parts.self_attn_layer_norm(pre + attn)
            torch.testing.assert_close(parts.final_layer_norm(after_attention + mlp), post)
        elif family.config == "GraniteConfig":
            torch.testing.assert_close(pre + 0.5 * (attn + mlp), post)
        elif family.config == "Gemma4TextConfig":
            torch.testing.assert_close((pre + attn + mlp) * parts.layer_scalar, post)
        else:
            torch.testing.assert_close(pre + attn + mlp, post)
        assert attn.abs().mean() > 0.001
        assert mlp.abs().mean() > 0.001


def test_the_residual_stream_is_what_transformers_calls_hidden_states(lm: LanguageModel, tokens: Tensor) -> None:
    acts = lm.activations(tokens, lm.site_names)

    hidden_states = lm.module(input_ids=tokens, output_hidden_states=True).hidden_states
    if lm.module.config.model_type.startswith("mamba"):  # which leaves out the embeddings
        hidden_states = (lm.module.get_input_embeddings()(tokens), *hidden_states)

    for layer in range(NUM_LAYERS):
        assert torch.equal(acts[f"resid_pre.{layer}"], hidden_states[layer])
    for layer in range(NUM_LAYERS - 1):  # the last one comes after the final norm
        assert torch.equal(acts[f"resid_post.{layer}"], hidden_states[layer + 1])


def projection_path(family: Family, kind: str) -> str:
    return f"{family.blocks}.1.{family.attn_projection if kind.startswith('attn') else family.mlp_projection}"


@pytest.mark.parametrize(("name", "read"), [part for part in PARTS if not part[1].endswith("out")])
def test_heads_and_neurons_are_what_the_output_projections_read(
    name: str, load_tiny: Callable[..., LanguageModel], tokens: Tensor, read: str
) -> None:
    lm, path = load_tiny(name), projection_path(FAMILIES[name], read)
    acts = lm.activations(tokens, [f"{read}.1", f"{path}.output"])
    module: Any = lm.module.get_submodule(path)
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T  # GPT-2's Conv1D

    projected = acts[f"{read}.1"] @ weight.T + (0 if module.bias is None else module.bias)

    torch.testing.assert_close(projected, acts[f"{path}.output"])


@pytest.mark.parametrize(("name", "kind"), PARTS)
def test_splicing_zeros_at_a_part_equals_zeroing_its_output_projection(
    name: str, load_tiny: Callable[..., LanguageModel], tokens: Tensor, kind: str
) -> None:
    model, family = load_tiny(name), FAMILIES[name]
    spliced = model.logits(tokens, {f"{kind}.1": zeros})
    clean = model.logits(tokens)
    projection: Any = model.module.get_submodule(projection_path(family, kind))

    with torch.no_grad():
        projection.weight.zero_()
        if kind.endswith("out") and projection.bias is not None:
            projection.bias.zero_()

    torch.testing.assert_close(spliced, model.logits(tokens))
    assert (spliced - clean).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post"])
def test_splicing_zeros_in_the_residual_stream_equals_zeroing_a_block_by_hand(
    family_name: str, family: Family, load_tiny: Callable[..., LanguageModel], tokens: Tensor, kind: str
) -> None:
    model = load_tiny(family_name)
    spliced = model.logits(tokens, {f"{kind}.1": zeros})
    target: Any = block(model, family, 1)
    original = target.forward

    def forward(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
        if kind == "resid_pre":
            return original(hidden_states * 0, *args, **kwargs)
        output: Any = original(hidden_states, *args, **kwargs)
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    target.forward = forward

    assert torch.equal(spliced, model.logits(tokens))


def test_widths_are_those_of_the_config(lm: LanguageModel, family: Family) -> None:
    hidden_size = lm.module.config.get_text_config().hidden_size

    for kind in KINDS:
        if f"{kind}.1" not in family.sites:
            continue
        if kind in ("attn_z", "mlp_act"):
            module: Any = lm.module.get_submodule(projection_path(family, kind))
            d_in = module.weight.shape[1] if isinstance(module, nn.Linear) else module.weight.shape[0]
        else:
            d_in = hidden_size
        assert lm.d_in(f"{kind}.1") == d_in


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
    named = named_sites(model, "a_family_of_next_year", num_layers=2)

    assert named == {}
    with pytest.raises(ValueError, match="Its sites are the input or output of any of its modules, for example '0.out"):
        find_site("resid_post.0", named, model)
    assert find_site("0.output", named, model) == Site("0", "output")


def test_the_middle_site_is_the_default_and_a_model_without_names_says_that_it_has_none(
    load_tiny: Callable[..., LanguageModel],
) -> None:
    model = load_tiny("gpt2")
    assert model.middle_site == "resid_post.1"
    model.sites = {}

    with pytest.raises(ValueError, match=r"a 'gpt2' model, a family without named sites.* for example 'transformer\.h"):
        _ = model.middle_site


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.1.hook_resid_pre", "resid_pre.1"),
        ("blocks.1.attn.hook_z", "attn_z.1"),
        ("blocks.1.hook_attn_out", "attn_out.1"),
        ("blocks.1.mlp.hook_post", "mlp_act.1"),
        ("blocks.1.hook_mlp_out", "mlp_out.1"),
        ("blocks.1.hook_resid_post", "resid_post.1"),
    ],
)
def test_names_of_transformer_lens_are_understood(gpt2: LanguageModel, tokens: Tensor, theirs: str, ours: str) -> None:
    assert site_name(theirs) == ours
    assert site_name(ours) == ours
    assert gpt2.d_in(theirs) == gpt2.d_in(ours)
    assert torch.equal(gpt2.activations(tokens, [theirs])[theirs], gpt2.activations(tokens, [ours])[ours])
    assert torch.equal(gpt2.logits(tokens, {theirs: zeros}), gpt2.logits(tokens, {ours: zeros}))
    assert gpt2.prefix(tokens, theirs.replace(".1.", ".2.")) is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.hook_resid_mid", r"between attention and MLP.*resid_pre\.1 or resid_post\.1.*ln_2\.input"),
        ("blocks.1.attn.hook_pattern", r"these are understood: blocks\.L\.hook_resid_pre, blocks\.L\.attn\.hook_z"),
        ("hook_embed", "looks like a name of TransformerLens"),
        ("blocks.7.hook_resid_post", "This model has no site 'blocks.7.hook_resid_post'"),
    ],
)
def test_names_of_transformer_lens_without_a_counterpart_say_so(gpt2: LanguageModel, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt2.d_in(name)


def test_a_router_is_told_to_have_no_effect(
    load_tiny: Callable[..., LanguageModel], caplog: pytest.LogCaptureFixture
) -> None:
    if transformers.__version__ < "5":
        pytest.skip("before transformers 5, nothing but the router's output chose the experts")
    model = load_tiny("mixtral")

    with caplog.at_level(logging.WARNING):
        model.d_in("model.layers.1.mlp.gate.output")
        model.d_in("model.layers.1.mlp.gate.output")
        model.d_in("model.layers.1.mlp.output")

    assert len(caplog.messages) == 1
    assert "at 'model.layers.1.mlp.gate.output' does not change the model's output" in caplog.text


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "attn_z"])
def test_layers_that_share_a_module_are_refused(
    load_tiny: Callable[..., LanguageModel], tokens: Tensor, kind: str
) -> None:
    model = load_tiny("llama")
    layers: Any = model.module.get_submodule("model.layers")
    layers[2] = layers[0]  # as in ALBERT and in universal transformers

    for site in (f"{kind}.0", f"{kind}.2"):
        for use in (model.d_in, lambda site: model.activations(tokens, [site]), model_with_edit(model, tokens)):
            with pytest.raises(ValueError, match=f"Site '{site}': the module runs more than once"):
                use(site)
    assert model.d_in(f"{kind}.1") == 16


def model_with_edit(model: LanguageModel, tokens: Tensor) -> Callable[[str], Tensor]:
    return lambda site: model.logits(tokens, {site: lambda x: x})


def test_a_shared_block_behind_the_site_runs_again(load_tiny: Callable[..., LanguageModel], tokens: Tensor) -> None:
    model = load_tiny("llama")
    layers: Any = model.module.get_submodule("model.layers")
    layers[2] = layers[0]

    whole = model.logits(tokens, {"mlp_out.1": zeros})

    assert torch.equal(model.logits(tokens, {"mlp_out.1": zeros}, after=model.prefix(tokens, "mlp_out.1")), whole)


def test_a_model_that_reads_both_ways_is_refused_though_its_config_does_not_say_so(
    load_tiny: Callable[..., LanguageModel],
) -> None:
    model = load_tiny("gpt2")
    attention: Any = model.module.get_submodule("transformer.h.0.attn")
    original = attention.forward

    def forward(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
        output: Any = original(hidden_states, *args, **kwargs)
        return (output[0] + hidden_states.mean(dim=1, keepdim=True), *output[1:])

    attention.forward = forward

    with pytest.raises(ValueError, match="does not read from left to right"):
        model.d_in("resid_post.1")
