"""Sites: the places in a language model whose activations can be read and replaced.

A site is the input or the output of one module, written `MODULE.input` or `MODULE.output`, for example
`model.layers.0.mlp.down_proj.input`. That works in every model. For the families below there are also
names that mean the same in all of them; L counts the layers from 0:

    resid_pre.L    the residual stream that enters block L
    attn_z.L       the heads' outputs side by side: what W_O, the attention's output projection, reads
    attn_out.L     what the attention adds to the residual stream
    mlp_act.L      the MLP's neurons after the nonlinearity (and after the gate, where there is one):
                   what the MLP's output projection reads
    mlp_out.L      what the MLP adds to the residual stream
    resid_post.L   the residual stream that leaves block L

so that resid_pre.L + attn_out.L + mlp_out.L = resid_post.L. A family is one entry of `FAMILIES`: to name
the sites of another one, look at its modules (`print(model.module)`) and add a line.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import nn

_GPT2 = {
    "resid_pre": "transformer.h.L.input",
    "attn_z": "transformer.h.L.attn.c_proj.input",
    "attn_out": "transformer.h.L.attn.output",
    "mlp_act": "transformer.h.L.mlp.c_proj.input",
    "mlp_out": "transformer.h.L.mlp.output",
    "resid_post": "transformer.h.L.output",
}

_NEOX = {
    "resid_pre": "gpt_neox.layers.L.input",
    "attn_z": "gpt_neox.layers.L.attention.dense.input",
    "attn_out": "gpt_neox.layers.L.attention.output",
    "mlp_act": "gpt_neox.layers.L.mlp.dense_4h_to_h.input",
    "mlp_out": "gpt_neox.layers.L.mlp.output",
    "resid_post": "gpt_neox.layers.L.output",
}

# The MLP of OPT is no module of its own. OPT-350m normalises the sum after each addition, so there the
# sum rule above does not hold: attn_out and mlp_out are still what is added, before that norm.
_OPT = {
    "resid_pre": "model.decoder.layers.L.input",
    "attn_z": "model.decoder.layers.L.self_attn.out_proj.input",
    "attn_out": "model.decoder.layers.L.self_attn.output",
    "mlp_act": "model.decoder.layers.L.fc2.input",
    "mlp_out": "model.decoder.layers.L.fc2.output",
    "resid_post": "model.decoder.layers.L.output",
}

_LLAMA = {
    "resid_pre": "model.layers.L.input",
    "attn_z": "model.layers.L.self_attn.o_proj.input",
    "attn_out": "model.layers.L.self_attn.output",
    "mlp_act": "model.layers.L.mlp.down_proj.input",
    "mlp_out": "model.layers.L.mlp.output",
    "resid_post": "model.layers.L.output",
}

# Gemma 2 and 3 normalise what attention and MLP return before adding it; the sites are after that norm.
_GEMMA2 = _LLAMA | {
    "attn_out": "model.layers.L.post_attention_layernorm.output",
    "mlp_out": "model.layers.L.post_feedforward_layernorm.output",
}

FAMILIES: dict[str, dict[str, str]] = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "opt": _OPT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    # Gemma 3 from 4B up reads images too; its text model sits one module deeper.
    "gemma3": {name: path.replace("model.", "model.language_model.", 1) for name, path in _GEMMA2.items()},
}
"""The sites of each family by its Hugging Face `model_type`; L stands for the layer."""


class Site(NamedTuple):
    """One place in a model: a module and which side of it."""

    module: str
    """Path of the module, as in `model.named_modules()`."""
    side: Literal["input", "output"]


def named_sites(model_type: str, num_layers: int) -> dict[str, Site]:
    """The named sites of a model, layer by layer in the order in which they are computed.

    Args:
        model_type: The `model_type` of the model's Hugging Face config.
        num_layers: How many blocks the model has.

    Returns:
        Name to site; empty where `model_type` is not in `FAMILIES`.
    """
    family = FAMILIES.get(model_type, {})
    return {
        f"{name}.{layer}": _parse(path.replace(".L.", f".{layer}."))
        for layer in range(num_layers)
        for name, path in family.items()
    }


def find_site(site: str, named: Mapping[str, Site], model: nn.Module) -> Site:
    """Look up a site by its name or by a module's path.

    Args:
        site: A key of `named`, or the path of any module of `model` followed by `.input` or `.output`.
        named: The named sites of `model`.
        model: The language model.

    Raises:
        ValueError: `model` has no such site.
    """
    if site in named:
        return named[site]
    paths = {f"{path}.{side}" for path, _ in model.named_modules() if path for side in ("input", "output")}
    if site in paths:
        return _parse(site)
    close = difflib.get_close_matches(site, [*named, *paths], n=1)
    raise ValueError(
        f"This model has no site {site!r}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" Its sites are {_abbreviated(named)}the input or output of any of its modules, for example "
        f"{_example(model)!r}."
    )


def _parse(path: str) -> Site:
    module, _, side = path.rpartition(".")
    return Site(module, "input" if side == "input" else "output")


def _abbreviated(named: Mapping[str, Site]) -> str:
    """`resid_pre.0 ... resid_pre.11, ...`, so that a deep model's list still fits on a screen."""
    layers: dict[str, list[str]] = {}
    for name in named:
        layers.setdefault(name.split(".")[0], []).append(name)
    ranges = [names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}" for names in layers.values()]
    return ", ".join(ranges) + "; and " if ranges else ""


def _example(model: nn.Module) -> str:
    """A module deep inside the model, whose path shows what such paths look like."""
    paths = [path for path, _ in model.named_modules() if re.search(r"\.\d+\.", path)]
    return f"{paths[-1] if paths else 'model.layers.0.mlp'}.output"
