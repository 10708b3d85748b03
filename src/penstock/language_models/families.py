"""The named sites of each model family: one row of `FAMILIES` per Hugging Face `model_type`.

To name the sites of another family, look at its modules (`print(model.module)`), add a row here and a line to
`tests/language_models/tiny_families.py`. Where alternatives are given, a model has the first one whose module exists.
"""

from collections.abc import Mapping

Paths = Mapping[str, tuple[str, ...]]
"""For each kind of site its possible paths; L stands for the layer."""


def _paths(blocks: str, *, attn_z: str, attn_out: str, mlp_act: str | None, mlp_out: str) -> dict[str, tuple[str, ...]]:
    """The six kinds of site, in the order in which they are computed; alternatives are separated by `|`."""
    inner = {"attn_z": attn_z, "attn_out": attn_out, "mlp_act": mlp_act, "mlp_out": mlp_out}
    return {
        "resid_pre": (f"{blocks}.L.input",),
        **{
            kind: tuple(f"{blocks}.L.{path}" for path in paths.split("|"))
            for kind, paths in inner.items()
            if paths is not None
        },
        "resid_post": (f"{blocks}.L.output",),
    }


def _blocks(path: str) -> dict[str, tuple[str, ...]]:
    """The residual stream alone, for blocks that are not one attention and one MLP."""
    return {"resid_pre": (f"{path}.L.input",), "resid_post": (f"{path}.L.output",)}


_GPT2 = _paths(
    "transformer.h",
    attn_z="attn.c_proj.input",
    attn_out="attn.output",
    mlp_act="mlp.c_proj.input",
    mlp_out="mlp.output",
)

_GPTJ = _paths(
    "transformer.h",
    attn_z="attn.out_proj.input",
    attn_out="attn.output",
    mlp_act="mlp.fc_out.input",
    mlp_out="mlp.output",
)

_GPT_NEO = _GPT2 | {"attn_z": ("transformer.h.L.attn.attention.out_proj.input",)}

_NEOX = _paths(
    "gpt_neox.layers",
    attn_z="attention.dense.input",
    attn_out="attention.output",
    mlp_act="mlp.dense_4h_to_h.input",
    mlp_out="mlp.output",
)

_FALCON = _paths(
    "transformer.h",
    attn_z="self_attention.dense.input",
    attn_out="self_attention.output",
    mlp_act="mlp.dense_4h_to_h.input",
    mlp_out="mlp.output",
)

# What Bloom's attention and MLP return already contains the residual stream.
_BLOOM = _FALCON | {
    "attn_out": ("transformer.h.L.self_attention.dense.output",),
    "mlp_out": ("transformer.h.L.mlp.dense_4h_to_h.output",),
}

# The same holds for MPT's MLP.
_MPT = _paths(
    "transformer.blocks",
    attn_z="attn.out_proj.input",
    attn_out="attn.output",
    mlp_act="ffn.down_proj.input",
    mlp_out="ffn.down_proj.output",
)

# The MLP of OPT is no module of its own. OPT-350m normalises the sum after each addition, so there the parts of a
# block do not add up: attn_out and mlp_out are still what is added, before that norm.
_OPT = _paths(
    "model.decoder.layers",
    attn_z="self_attn.out_proj.input",
    attn_out="self_attn.output",
    mlp_act="fc2.input",
    mlp_out="fc2.output",
)

# Layers with several experts have no mlp_act, and layers with another mixer than attention no attn_z and attn_out.
_LLAMA = _paths(
    "model.layers",
    attn_z="self_attn.o_proj.input",
    attn_out="self_attn.output",
    mlp_act="mlp.down_proj.input",
    mlp_out="mlp.output",
)

_MIXTRAL = _LLAMA | {"mlp_out": ("model.layers.L.mlp.output", "model.layers.L.block_sparse_moe.output")}

_LLAMA4 = _LLAMA | {
    "mlp_act": ("model.layers.L.feed_forward.down_proj.input",),
    "mlp_out": ("model.layers.L.feed_forward.output",),
}

_PHI = _LLAMA | {"attn_z": ("model.layers.L.self_attn.dense.input",), "mlp_act": ("model.layers.L.mlp.fc2.input",)}

_STARCODER2 = _LLAMA | {"mlp_act": ("model.layers.L.mlp.c_proj.input",)}

# These normalise what attention and MLP return before adding it; the sites are after that norm.
_GEMMA2 = _LLAMA | {
    "attn_out": ("model.layers.L.post_attention_layernorm.output",),
    "mlp_out": ("model.layers.L.post_feedforward_layernorm.output",),
}
_GLM4 = _LLAMA | {
    "attn_out": ("model.layers.L.post_self_attn_layernorm.output",),
    "mlp_out": ("model.layers.L.post_mlp_layernorm.output",),
}

FAMILIES: dict[str, Paths] = {
    "bloom": _BLOOM,
    "codegen": _GPTJ,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "deepseek_v3": _LLAMA,
    "falcon": _FALCON,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gemma4_text": _GEMMA2,
    "glm4": _GLM4,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _NEOX,
    "gpt_oss": _LLAMA,
    "gptj": _GPTJ,
    # Granite multiplies what attention and MLP return before adding it, so the parts of a block do not add up.
    "granite": _LLAMA,
    "lfm2": _blocks("model.layers"),
    "llama": _LLAMA,
    "llama4_text": _LLAMA4,
    "mamba": _blocks("backbone.layers"),
    "mamba2": _blocks("backbone.layers"),
    "mistral": _LLAMA,
    "mixtral": _MIXTRAL,
    "mpt": _MPT,
    "nemotron": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _GEMMA2,
    "olmo3": _GEMMA2,
    "olmoe": _LLAMA,
    "opt": _OPT,
    "phi": _PHI,
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_5_text": _LLAMA,
    "qwen3_moe": _LLAMA,
    "qwen3_next": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _STARCODER2,
    "zamba2": _blocks("model.layers"),
}
"""The sites of each family by the `model_type` of its Hugging Face text config."""
