"""What tests of several floors share."""

import json
import os
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

# Beside other workers of pytest-xdist, a library's own threads only wait for one another. Read when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from penstock.language_models.loading import LanguageModel
from penstock.runs.finished_run import FinishedRun
from penstock.runs.sweep import run_sweep
from penstock.saes import ARCHITECTURES, SAE
from penstock.training.settings import (
    DataConfig,
    EvalConfig,
    LanguageModelConfig,
    OptimConfig,
    ResamplingConfig,
    RunConfig,
    SAEConfig,
)
from penstock.training.trainer import SAETrainer


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small take several times longer on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def diverge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes SAEs diverge by a NaN among their weights: `diverge("gated", 27)` at step 27 those with that in their name.

    Call it again for others.
    """

    def make(part_of_name: str, step: int) -> None:
        original = SAETrainer.step

        def poisoned(trainer: SAETrainer, x: torch.Tensor, now: int, *validation: Any) -> dict[str, float]:
            if part_of_name in trainer.config.folder and now == step:
                with torch.no_grad():
                    trainer.sae.b_dec[0] = float("nan")
            return original(trainer, x, now, *validation)

        monkeypatch.setattr(SAETrainer, "step", poisoned)

    return make


@pytest.fixture(scope="session")
def random_sae() -> Callable[..., SAE]:
    """Makes an SAE in which no parameter is special: decoder rows of many norms, every bias at work.

    Half of a Gated SAE's latents would have a negative threshold b_mag - exp(r_mag) b_gate.
    """

    def make(arch: str, d_in: int = 6, d_sae: int = 10, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> SAE:
        generator = torch.Generator().manual_seed(seed)
        sae = ARCHITECTURES[arch].make(d_in, d_sae).double()
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            sae.W_dec *= torch.linspace(0.3, 3, d_sae)[:, None]
            threshold = torch.linspace(0.1, 1, d_sae, dtype=torch.float64)
            if arch == "jumprelu":
                sae.get_parameter("threshold").copy_(threshold)
            if arch == "gated":
                threshold[::2] *= -1
                b_mag, r_mag = sae.get_parameter("b_mag"), sae.get_parameter("r_mag")
                sae.get_parameter("b_gate").copy_((b_mag - threshold) * (-r_mag).exp())
        return sae.to(dtype)

    return make


@pytest.fixture(scope="session")
def tiny_lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers and width 16, and a tokenizer of one token a letter, as users have them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_lm")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    module = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    module.save_pretrained(folder)
    vocab = {token: id for id, token in enumerate(["<pad>", "<s>", "<unk>", *string.ascii_letters])}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", pad_token="<pad>", model_max_length=32
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tiny_lm_folder: Path) -> LanguageModel:
    """The model in `tiny_lm_folder`, loaded; not to be changed."""
    return LanguageModel.load(tiny_lm_folder)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 150 documents of 20 to 120 random letters, one token each."""
    path = tmp_path_factory.mktemp("corpus") / "letters.jsonl"
    random = Random(0)
    texts = ["".join(random.choices(string.ascii_letters, k=random.randint(20, 120))) for _ in range(150)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_lm_folder: Path, corpus: Path) -> Callable[..., RunConfig]:
    """Makes the settings of a run of a second or less: 60 steps of 64 tokens at one or two sites.

    Whatever a checkpoint must carry matters in it: a steered coefficient, latents that die and are
    resampled, and (`steps` above about 150) a text that is passed over again.
    """

    def make(*saes: SAEConfig, steps: int = 60, cached: bool = False, **changes: Any) -> RunConfig:
        data = {"cache_tokens": 1500} if cached else {"buffer_tokens": 512}
        both = (
            SAEConfig(
                arch="gated",
                site="resid_post.0",
                d_sae=48,
                recipe="paper",
                target_l0=1.0,
                lr=0.03,
                resample_at=(0.3, 0.6),
            ),
            SAEConfig(arch="relu", site="resid_post.1", d_sae=32, recipe="norm_weighted", sparsity_coef=0.6),
        )
        settings: dict[str, Any] = {
            "language_model": LanguageModelConfig(model=str(tiny_lm_folder)),
            "data": DataConfig(text=str(corpus), context=32, tokens=64 * steps, model_batch_rows=8, **data),
            "optim": OptimConfig(batch_size=64),
            "resampling": ResamplingConfig(inputs=300, window_tokens=64),
            "eval": EvalConfig(eval_tokens=300, bootstrap=20),
            "checkpoint_steps": 20,
            "log_steps": 5,
            "threads": 1,
        }
        return RunConfig(saes=saes or both, **(settings | changes))

    return make


def _small_sae(arch: str, seed: int, target_l0: float = 3.0) -> SAEConfig:
    return SAEConfig(arch=arch, site="resid_post.0", d_sae=32, target_l0=target_l0, seed=seed, name=f"{arch}{seed}")


@pytest.fixture(scope="session")
def run_folder(tiny_run: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms with two seeds each, trained for a moment and evaluated; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    saes = [_small_sae(arch, seed) for arch in ("gated", "relu") for seed in (0, 1)]
    resampling = ResamplingConfig(window_tokens=64)  # none of them resamples
    run_sweep(tiny_run(*saes, steps=120, cached=True, resampling=resampling), folder)
    return folder


@pytest.fixture(scope="session")
def finished(run_folder: Path) -> FinishedRun:
    return FinishedRun.load(run_folder)


# No two are the same, so that none can stand for another.
GELU_1L_SIZES = {"n_layers": 1, "d_model": 6, "n_heads": 2, "d_head": 3, "d_mlp": 10, "n_ctx": 130, "d_vocab": 7}


def _gelu_1l_state() -> dict[str, torch.Tensor]:
    """A random TransformerLens state dict."""
    d_model, heads, d_head, d_mlp = (GELU_1L_SIZES[name] for name in ("d_model", "n_heads", "d_head", "d_mlp"))
    block: dict[str, tuple[int, ...]] = {
        **{f"attn.W_{kind}": (heads, d_model, d_head) for kind in "QKV"},
        **{f"attn.b_{kind}": (heads, d_head) for kind in "QKV"},
        **{"attn.W_O": (heads, d_head, d_model), "attn.b_O": (d_model,)},
        **{"mlp.W_in": (d_model, d_mlp), "mlp.b_in": (d_mlp,), "mlp.W_out": (d_mlp, d_model), "mlp.b_out": (d_model,)},
        **{f"{norm}.{kind}": (d_model,) for norm in ("ln1", "ln2") for kind in "wb"},
    }
    shapes = {
        **{"embed.W_E": (GELU_1L_SIZES["d_vocab"], d_model), "pos_embed.W_pos": (GELU_1L_SIZES["n_ctx"], d_model)},
        **{f"blocks.0.{name}": shape for name, shape in block.items()},
        **{"ln_final.w": (d_model,), "ln_final.b": (d_model,), "unembed.W_U": (d_model, GELU_1L_SIZES["d_vocab"])},
    }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def write_gelu_1l() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Writes weights, config.json and tokenizer into one folder, as gelu-1l is downloaded; gives the weights."""

    def write(folder: Path) -> dict[str, torch.Tensor]:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        folder.mkdir()
        tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(["<|BOS|>", *"abct"])}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|BOS|>").save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(GELU_1L_SIZES | {"act_fn": "gelu"}))
        state = _gelu_1l_state()
        torch.save(state, folder / "model_final.pth")
        return state

    return write
