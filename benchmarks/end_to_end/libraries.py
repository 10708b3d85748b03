"""One Gated SAE trained from text by each library's own runner, and the seconds that took.

The clock runs from the first text read to the trained SAE written to disk. Imports, loading the language model and
building the (untrained) runner are outside it; tokenising, the language model's passes, filling the shuffle buffer,
measuring the activations' scale, every training step and the saving are inside.
"""

# The peers live in their own environment, not in the one that type-checks this project.
# pyright: reportMissingImports=false

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from workload import CONTEXT, MODEL_ROWS, Workload, enough_documents, packed_texts


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one run took."""

    seconds: float
    """From the start of the stream to the SAE on disk."""
    harvest_seconds: float
    """Of these, spent on getting batches: tokenising, the language model, the shuffle buffer."""
    tokens: int
    """Activations trained on."""
    final_l0: float | None
    """Mean L0 of the last batches trained on, where the library says it."""


class TimedBatches:
    """An iterator of batches that adds up how long they were waited for."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self.seconds = 0.0
        self.tokens = 0

    def __iter__(self) -> "TimedBatches":
        return self

    def __next__(self) -> torch.Tensor:
        started = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - started
        self.tokens += len(batch)
        return batch


def run_penstock(work: Workload, model_folder: Path, out: Path) -> Timing:
    """penstock: what `penstock train` does after loading the model, streaming, with its default recipe."""
    from penstock.runs.load_model import load_model
    from penstock.runs.sweep import prepare, train
    from penstock.training.settings import DataConfig, LanguageModelConfig, OptimConfig, RunConfig, SAEConfig

    sae = SAEConfig(
        arch="gated",
        site=f"{work.module}.output",
        d_sae=work.d_sae,
        target_l0=work.target_l0,
        name="gated",
    )
    config = RunConfig(
        saes=(sae,),
        # The embedded model goes by its name; its folder is the same for the others.
        language_model=LanguageModelConfig(model="embedded" if work.model == "embedded" else str(model_folder)),
        data=DataConfig(
            tokens=work.tokens,
            context=CONTEXT,
            buffer_tokens=work.buffer_tokens,
            model_batch_rows=MODEL_ROWS,
        ),
        optim=OptimConfig(batch_size=work.batch_size),
        threads=torch.get_num_threads(),
        log_steps=max(1, work.steps // 20),
    )
    model = load_model(config)
    prepare(config, out, model)
    started = time.perf_counter()
    train(out, model)
    seconds = time.perf_counter() - started
    saved = json.loads((out / "saes" / "gated" / "cfg.json").read_text())["metadata"]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return Timing(
        seconds=seconds,
        harvest_seconds=seconds - saved["train_seconds"],
        tokens=saved["tokens_trained"],
        final_l0=last["l0"],
    )


def run_saelens(work: Workload, model_folder: Path, out: Path) -> Timing:
    """SAELens: `LanguageModelSAETrainingRunner` on the Hugging Face model, the texts handed over in memory.

    Set where its defaults would not run or would not compare: the buffer (default 20 contexts, less than a batch of
    4096), the model's precision (float32; it would take the float16 of the file), BOS left out as penstock does, the
    scale measured on 2 batches instead of 1000, no wandb and no checkpoints.
    """
    from datasets import Dataset
    from sae_lens import (
        GatedTrainingSAEConfig,
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
    )

    config = LanguageModelSAERunnerConfig(
        sae=GatedTrainingSAEConfig(
            d_in=work.d_in,
            d_sae=work.d_sae,
            l1_coefficient=work.peer_coef,
            normalize_activations="expected_average_only_in",
        ),
        model_name=str(model_folder),
        model_class_name="AutoModelForCausalLM",
        model_from_pretrained_kwargs={"dtype": "float32"},
        hook_name=work.module,
        streaming=False,
        is_dataset_tokenized=False,
        context_size=CONTEXT,
        store_batch_size_prompts=MODEL_ROWS,
        n_batches_in_buffer=work.buffer_tokens // CONTEXT,
        exclude_special_tokens=True,
        training_tokens=work.tokens,
        train_batch_size_tokens=work.batch_size,
        lr=work.peer_lr,
        lr_warm_up_steps=work.steps // 20,
        lr_decay_steps=work.steps // 5,
        n_batches_for_norm_estimate=2,
        logger=LoggingConfig(log_to_wandb=False),
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=str(out),
        verbose=False,
    )
    texts = Dataset.from_dict({"text": enough_documents(model_folder, work.tokens + 4 * work.buffer_tokens)})
    runner = LanguageModelSAETrainingRunner(config, override_dataset=texts)
    batches = TimedBatches(runner.activations_store)
    runner.activations_store = batches
    started = time.perf_counter()
    sae = runner.run()
    seconds = time.perf_counter() - started
    return Timing(
        seconds=seconds,
        harvest_seconds=batches.seconds,
        tokens=work.tokens,
        final_l0=sae.cfg.metadata.l0,
    )


def run_dictionary_learning(work: Workload, model_folder: Path, out: Path) -> Timing:
    """dictionary_learning: its `ActivationBuffer` on nnsight and `trainSAE`.

    It cuts each text at the context and does not pack, so it gets the packed rows as texts, BOS written out, and
    leaves out the first position. nnsight 0.3.7 cannot load a Llama under transformers 5; it gets the loaded model.
    """
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.trainers import GatedSAETrainer
    from dictionary_learning.training import get_norm_factor, trainSAE
    from nnsight import LanguageModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.bos_token
    model = LanguageModel(
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).requires_grad_(False),
        tokenizer=tokenizer,
    )
    submodule: Any = model
    for name in work.module.split("."):
        submodule = submodule[int(name)] if name.isdigit() else getattr(submodule, name)
    texts = packed_texts(model_folder, work.tokens + 4 * work.buffer_tokens)
    buffer = ActivationBuffer(
        _again_and_again(texts),
        model,
        submodule,
        d_submodule=work.d_in,
        n_ctxs=work.buffer_tokens // CONTEXT,
        ctx_len=CONTEXT,
        refresh_batch_size=MODEL_ROWS,
        out_batch_size=work.batch_size,
        device="cpu",
        remove_bos=True,
    )
    batches = TimedBatches(iter(buffer))
    settings = {
        "trainer": GatedSAETrainer,
        "steps": work.steps,
        "activation_dim": work.d_in,
        "dict_size": work.d_sae,
        "layer": 0,  # layer and lm_name are required and only recorded
        "lm_name": work.model,
        "lr": work.peer_lr,
        "l1_penalty": work.peer_coef,
        "warmup_steps": work.steps // 20,
        "sparsity_warmup_steps": work.steps // 20,
        "decay_start": work.steps - max(1, work.steps // 5),
        "seed": 0,
        "device": "cpu",
    }
    started = time.perf_counter()
    # What its `normalize_activations` does, on 2 batches instead of 100, and to the peers' common scale.
    with redirect_stdout(io.StringIO()):
        norm = get_norm_factor(islice(batches, 2), steps=2) / math.sqrt(work.d_in)
    scaled = (batch / norm for batch in batches)
    trainSAE(scaled, [settings], steps=work.steps, save_dir=str(out), device="cpu")
    seconds = time.perf_counter() - started
    return Timing(seconds=seconds, harvest_seconds=batches.seconds, tokens=work.tokens, final_l0=None)


def _again_and_again(texts: list[str]) -> Iterator[str]:
    while True:
        yield from texts


LIBRARIES: dict[str, tuple[str, Callable[[Workload, Path, Path], Timing]]] = {
    "penstock": ("penstock", run_penstock),
    "SAELens": ("sae-lens", run_saelens),
    "dictionary_learning": ("dictionary-learning", run_dictionary_learning),
}
"""For each library its distribution's name and what runs it."""
