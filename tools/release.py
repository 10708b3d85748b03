"""Write a trained model into a folder in the format of Hugging Face `transformers`, and check the result."""

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BOS = "<|bos|>"
PROMPT = "class"
MAX_BYTES = 8_000_000
"""The largest size of the folder inside the package, in bytes."""


@torch.no_grad()
def sample_of(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """PROMPT and the 200 tokens that the model generates after it, at temperature 0.8."""
    generator = torch.Generator().manual_seed(0)
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False)]
    for _ in range(200):
        probabilities = (model(torch.tensor([tokens])).logits[0, -1] / 0.8).softmax(dim=-1)
        tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return tokenizer.backend_tokenizer.decode(tokens[1:])


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in half precision, and its tokenizer, in the format of `transformers`."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def check_release(folder: Path, nats: dict[str, float], num_tokens: int) -> None:
    """Refuse a model that is too large, or no better than a 5-gram model.

    Args:
        folder: The written model and its card.
        nats: Model and its loss summed over the held-out tokens; the shipped model first, then the yardstick.
        num_tokens: Held-out tokens predicted.

    Raises:
        RuntimeError: the folder is over MAX_BYTES, or the loss is not below the yardstick's.
    """
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if num_bytes > MAX_BYTES:
        raise RuntimeError(
            f"the model folder {folder} holds {num_bytes:,} bytes, {MAX_BYTES:,} are allowed; "
            f"lower --d-model, --num-layers or --vocab-size. Nothing was written to --out."
        )
    (name, loss), (yardstick, to_beat) = ((name, total / num_tokens) for name, total in nats.items())
    if loss >= to_beat:
        raise RuntimeError(
            f"the held-out loss of {name}, {loss:.4f} nats per token, does not beat that of {yardstick}, "
            f"{to_beat:.4f}; train on more --tokens. Nothing was written to --out; the model and its card "
            f"are in {folder}."
        )
