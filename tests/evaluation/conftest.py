"""A tiny random Llama with held-out rows that it would write itself, and sums to make records from."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from penstock.evaluation import Evaluation
from penstock.language_models.loading import LanguageModel
from penstock.language_models.tokens import TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD, BOS, FIRST = 0, 1, 2
VOCAB = 24
D_IN = 12


def tiny_llama() -> "PreTrainedModel":
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_IN,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    module = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return module


def language_model(module: "PreTrainedModel") -> LanguageModel:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {f"t{id}": id for id in range(VOCAB)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t2")))
    return LanguageModel(module, tokenizer, "tiny-llama")


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """Two layers of random weights; not to be changed."""
    return language_model(tiny_llama())


@pytest.fixture(scope="session")
def lm_bfloat16() -> LanguageModel:
    return language_model(tiny_llama().bfloat16())


@pytest.fixture(scope="session")
def lm_without_mlp(lm: LanguageModel) -> LanguageModel:
    """The same model, but nothing leaves the neurons of the last layer: they may be replaced by anything."""
    module = copy.deepcopy(lm.module)
    module.get_submodule("model.layers.1.mlp.down_proj").get_parameter("weight").data.zero_()
    return language_model(module)


@pytest.fixture(scope="session")
def rows(lm: LanguageModel) -> TokenRows:
    """Six rows of eleven tokens sampled from the model, so that it loses from any damage.

    All begin with BOS; the second is packed with another BOS in the middle; the last two end in padding, the
    very last after a single token of text.
    """
    generator = torch.Generator().manual_seed(4)
    tokens = torch.full((6, 1), BOS)
    for _ in range(10):
        probabilities = torch.softmax(lm.logits(tokens)[:, -1, FIRST:], dim=-1)
        sampled = torch.multinomial(probabilities, 1, generator=generator) + FIRST
        tokens = torch.cat([tokens, sampled], dim=1)
    tokens[1, 5] = BOS
    tokens[4, 7:] = PAD
    tokens[5, 2:] = PAD
    return TokenRows(tokens, tokens >= FIRST)


@pytest.fixture(scope="session")
def counted(lm: LanguageModel, rows: TokenRows) -> Tensor:
    """Activations after the first layer at the positions that count, by a hook of our own."""
    found: list[Tensor] = []

    def keep(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].clone())

    handle = lm.module.get_submodule("model.layers.1").register_forward_pre_hook(keep)
    lm.logits(rows.tokens)
    handle.remove()
    return found[0][rows.mask]


@pytest.fixture
def fake_evaluation() -> Callable[..., Evaluation]:
    """Makes sums as an SAE of five latents could leave them, one sequence at a time."""

    def make(num_sequences: int = 40, *, seed: int = 0) -> Evaluation:
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(num_sequences, generator=generator, dtype=torch.float64)

        tokens = uniform(5, 15).round()
        per_token = {
            "square_error": uniform(0.5, 2),
            "square_deviation": uniform(8, 12),
            "square_x_hat": uniform(9, 10),
            "dot": uniform(10, 11),
            "cosine": uniform(0.9, 1),
            "l0": uniform(1, 4),
            "l1": uniform(2, 8),
        }
        per_prediction = {
            "ce_clean": uniform(2, 3),
            "ce_spliced": uniform(3, 4),
            "ce_zero": uniform(8, 12),
            "ce_mean": uniform(6, 8),
            "kl": uniform(0.1, 0.5),
        }
        sums = {name: tokens * value for name, value in per_token.items()}
        sums |= {name: (tokens - 1) * value for name, value in per_prediction.items()}
        return Evaluation(
            sums={"tokens": tokens, "ce_tokens": tokens - 1, **sums},
            firing=torch.tensor([0, 1, 30, 200, int(tokens.sum())]),
            l0_histogram=torch.tensor([0, int(tokens.sum()) - 60, 30, 20, 10, 0]),
        )

    return make
