"""How to build a tiny model of each family, and where its parts are; not read from the library's table.

A new family is one line in `FAMILIES`: the tests of sites, splices, prefixes and loading then run over it.
"""

from typing import Any, NamedTuple

VOCAB_SIZE = 64
NUM_LAYERS = 3
KINDS = ("resid_pre", "attn_z", "attn_out", "mlp_act", "mlp_out", "resid_post")


class Family(NamedTuple):
    """One family of models."""

    config: str
    settings: dict[str, Any]
    blocks: str
    attn_projection: str | None = None
    """Where it is one, the output projection of the attention in layer 1."""
    mlp_projection: str | None = None
    """Where it is one, the output projection of the MLP in layer 1."""
    is_sum: bool = True
    """Whether the block adds attention and MLP to the residual stream and does nothing else to it."""
    lacks: tuple[str, ...] = ()
    """The kinds of site, or single sites, that the model does not have."""
    since: str = "4.57.1"
    """The transformers in which it works; older ones leave its tests out."""

    @property
    def sites(self) -> list[str]:
        """The sites it has, layer by layer."""
        every = [(kind, f"{kind}.{layer}") for layer in range(NUM_LAYERS) for kind in KINDS]
        return [site for kind, site in every if kind not in self.lacks and site not in self.lacks]


_IDS = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2}
_BARE = _IDS | {
    "hidden_size": 16,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
_COMMON = _BARE | {"intermediate_size": 24}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GEMMA2 = _HEADS | _SLIDING
_OPT = _BARE | {"ffn_dim": 24}
_GPT2 = _IDS | {"n_embd": 16, "n_layer": NUM_LAYERS, "n_head": 4, "n_inner": 24, "n_positions": 32}
_FALCON = _BARE | {"ffn_hidden_size": 24}
_EXPERTS = _GROUPED | {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}
_DEEPSEEK = _EXPERTS | {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
}
_HYBRID = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_WITHOUT_ATTENTION = ("attn_z.0", "attn_out.0", "attn_z.2", "attn_out.2")
_MAMBA = {key: _BARE[key] for key in (*_IDS, "hidden_size", "num_hidden_layers", "pad_token_id")} | {"state_size": 4}
_ONLY_BLOCKS = ("attn_z", "attn_out", "mlp_act", "mlp_out")
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

_GPT2_PARTS = ("transformer.h", "attn.c_proj", "mlp.c_proj")
_GPTJ_PARTS = ("transformer.h", "attn.out_proj", "mlp.fc_out")
_NEOX_PARTS = ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h")
_FALCON_PARTS = ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h")
_OPT_PARTS = ("model.decoder.layers", "self_attn.out_proj", "fc2")
_LLAMA_PARTS = ("model.layers", "self_attn.o_proj", "mlp.down_proj")
_EXPERT_PARTS = ("model.layers", "self_attn.o_proj")

FAMILIES = {
    "gpt2": Family("GPT2Config", _GPT2, *_GPT2_PARTS),
    "gpt_neox": Family("GPTNeoXConfig", _COMMON, *_NEOX_PARTS),
    "gpt_neox_sequential": Family("GPTNeoXConfig", _COMMON | {"use_parallel_residual": False}, *_NEOX_PARTS),
    "llama": Family("LlamaConfig", _GROUPED, *_LLAMA_PARTS),
    "mistral": Family("MistralConfig", _GROUPED | {"sliding_window": 4}, *_LLAMA_PARTS),
    "qwen2": Family("Qwen2Config", _GROUPED, *_LLAMA_PARTS),
    "qwen3": Family("Qwen3Config", _HEADS, *_LLAMA_PARTS),
    "phi3": Family("Phi3Config", _GROUPED | {"sliding_window": 4}, *_LLAMA_PARTS),
    "gemma": Family("GemmaConfig", _HEADS, *_LLAMA_PARTS),
    "gemma2": Family("Gemma2Config", _GEMMA2, *_LLAMA_PARTS),
    "gemma3_text": Family("Gemma3TextConfig", _GEMMA2, *_LLAMA_PARTS),
    "gemma3": Family(
        "Gemma3Config",
        {"text_config": _GEMMA2, "vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 63},
        "model.language_model.layers",
        *_LLAMA_PARTS[1:],
    ),
    "opt": Family("OPTConfig", _OPT, *_OPT_PARTS),
    "opt_350m": Family(
        "OPTConfig", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8}, *_OPT_PARTS, is_sum=False
    ),
    "gpt_neo": Family(
        "GPTNeoConfig",
        _IDS
        | {"hidden_size": 16, "num_layers": NUM_LAYERS, "num_heads": 4, "intermediate_size": 24, "window_size": 4}
        | {"max_position_embeddings": 32, "attention_types": [[["global", "local", "global"], 1]]},
        "transformer.h",
        "attn.attention.out_proj",
        "mlp.c_proj",
    ),
    "gptj": Family("GPTJConfig", _GPT2 | {"rotary_dim": 2}, *_GPTJ_PARTS),
    "codegen": Family("CodeGenConfig", _GPT2 | {"rotary_dim": 2, "n_ctx": 32}, *_GPTJ_PARTS),
    # Before, it needed torch.jit.script, of which new versions of torch warn.
    "gpt_bigcode": Family("GPTBigCodeConfig", _GPT2, *_GPT2_PARTS, since="5.0"),
    "mixtral": Family("MixtralConfig", _EXPERTS, *_EXPERT_PARTS, lacks=("mlp_act",)),
    "qwen2_moe": Family(
        "Qwen2MoeConfig", _EXPERTS | {"mlp_only_layers": [0]}, *_EXPERT_PARTS, lacks=("mlp_act.1", "mlp_act.2")
    ),
    "qwen3_moe": Family("Qwen3MoeConfig", _EXPERTS | {"head_dim": 8}, *_EXPERT_PARTS, lacks=("mlp_act",)),
    "olmoe": Family("OlmoeConfig", _EXPERTS, *_EXPERT_PARTS, lacks=("mlp_act",)),
    "gpt_oss": Family("GptOssConfig", _EXPERTS | _SLIDING | {"head_dim": 8}, *_EXPERT_PARTS, lacks=("mlp_act",)),
    "deepseek_v3": Family("DeepseekV3Config", _DEEPSEEK, *_EXPERT_PARTS, lacks=("mlp_act.1", "mlp_act.2")),
    "qwen3_next": Family("Qwen3NextConfig", _EXPERTS | _HYBRID, *_EXPERT_PARTS, lacks=("mlp_act", *_WITHOUT_ATTENTION)),
    "qwen3_5_text": Family(
        "Qwen3_5TextConfig", _GROUPED | _HYBRID, *_LLAMA_PARTS, lacks=_WITHOUT_ATTENTION, since="5.2"
    ),
    "phi": Family("PhiConfig", _COMMON, "model.layers", "self_attn.dense", "mlp.fc2"),
    "falcon": Family("FalconConfig", _FALCON | {"parallel_attn": True, "alibi": False}, *_FALCON_PARTS),
    "falcon_sequential": Family("FalconConfig", _FALCON | {"parallel_attn": False, "alibi": True}, *_FALCON_PARTS),
    "falcon_new": Family("FalconConfig", _FALCON | {"new_decoder_architecture": True}, *_FALCON_PARTS),
    "bloom": Family("BloomConfig", _IDS | {"hidden_size": 16, "n_layer": NUM_LAYERS, "n_head": 4}, *_FALCON_PARTS),
    "mpt": Family(
        "MptConfig",
        _IDS | {"d_model": 16, "n_layers": NUM_LAYERS, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 32},
        "transformer.blocks",
        "attn.out_proj",
        "ffn.down_proj",
    ),
    "olmo": Family("OlmoConfig", _GROUPED, *_LLAMA_PARTS),
    "stablelm": Family("StableLmConfig", _GROUPED, *_LLAMA_PARTS),
    "cohere": Family("CohereConfig", _GROUPED, *_LLAMA_PARTS),
    "cohere2": Family("Cohere2Config", _GEMMA2, *_LLAMA_PARTS),
    "smollm3": Family("SmolLM3Config", _GROUPED, *_LLAMA_PARTS),
    "nemotron": Family("NemotronConfig", _GROUPED, *_LLAMA_PARTS),
    "granite": Family("GraniteConfig", _GROUPED | {"residual_multiplier": 0.5}, *_LLAMA_PARTS, is_sum=False),
    "olmo2": Family("Olmo2Config", _GROUPED, *_LLAMA_PARTS),
    "olmo3": Family("Olmo3Config", _GROUPED | _SLIDING, *_LLAMA_PARTS),
    "starcoder2": Family(
        "Starcoder2Config", _GROUPED | {"sliding_window": 4}, "model.layers", "self_attn.o_proj", "mlp.c_proj"
    ),
    "glm4": Family("Glm4Config", _HEADS, *_LLAMA_PARTS),
    "gemma4_text": Family(
        "Gemma4TextConfig",
        _HEADS
        | {"global_head_dim": 8, "sliding_window": 4, "hidden_size_per_layer_input": 0}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        *_LLAMA_PARTS,
        is_sum=False,
        since="5.5",
    ),
    "llama4_text": Family(
        "Llama4TextConfig",
        _EXPERTS | {"head_dim": 8, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 2},
        *_EXPERT_PARTS,
        lacks=("mlp_act.1",),
    ),
    "mamba": Family("MambaConfig", _MAMBA, "backbone.layers", lacks=_ONLY_BLOCKS),
    "mamba2": Family(
        "Mamba2Config",
        _MAMBA | {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
        "backbone.layers",
        lacks=_ONLY_BLOCKS,
    ),
    "zamba2": Family(
        "Zamba2Config",
        _GROUPED
        | {"mamba_d_state": 4, "n_mamba_heads": 4, "mamba_ngroups": 1, "chunk_size": 8, "num_mem_blocks": 1}
        | {"layers_block_type": ["mamba", "hybrid", "hybrid"]},
        "model.layers",
        lacks=_ONLY_BLOCKS,
        since="5.0",  # before, its shared weights could not be saved
    ),
    "lfm2": Family("Lfm2Config", _GROUPED | {"full_attn_idxs": [1]}, "model.layers", lacks=_ONLY_BLOCKS),
}
