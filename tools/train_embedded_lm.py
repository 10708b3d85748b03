"""Train the language model that ships inside penstock, on the Python standard library's source.

    python tools/train_embedded_lm.py --out src/penstock/language_models/embedded

Trains a byte-level BPE tokenizer, then a small Llama (Hugging Face format, half precision), then a
5-gram model on the same tokens as the baseline. Measures all numbers in MODEL_CARD.md and writes it.
After an interruption, the same command continues from the last checkpoint in `--work`, also with more
`--tokens`, because the learning rate is constant until the last 40%. When all tokens are trained on,
the command only measures again and writes the card.
"""

import dataclasses
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_card import CurveRow, ModelCard, SplitSize
from ngram import KneserNey
from penstock.language_models.stdlib_corpus import Split, stdlib_documents
from release import BOS, PROMPT, check_release, sample_of, save_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path = Path("src/penstock/language_models/embedded")
    """Folder that receives config.json, model.safetensors, tokenizer.json and MODEL_CARD.md."""
    work: Path = Path("runs/embedded_lm")
    """Folder for the token arrays, the checkpoint and the loss curve."""
    tokens: int = 24_000_000
    """Training tokens, all epochs together."""
    vocab_size: int = 4096
    """Entries of the tokenizer, BOS included."""
    d_model: int = 192
    """Width of the residual stream; the MLP is 8/3 as wide, rounded down to a multiple of 32."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 6
    """Attention heads in a block."""
    context: int = 256
    """Tokens in a sequence, the BOS at its start included."""
    batch_size: int = 16
    """Sequences in a training step."""
    lr: float = 1e-2
    """Peak learning rate of Muon (hidden matrices) and AdamW (embeddings and norms)."""
    seed: int = 0
    """Seed of the initial weights and of the order of the rows."""
    eval_every: int = 500
    """Steps between two checkpoints with a held-out loss."""

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the train split; loaded again if it is already in `work`."""
    path = settings.work / "tokenizer.json"
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=[BOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = (document.text for document in stdlib_documents("train"))
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(str(path))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token=BOS, model_max_length=settings.context)


def tokens_of(split: Split, tokenizer: PreTrainedTokenizerFast, work: Path) -> tuple[np.ndarray, SplitSize]:
    """All documents of a split in one array, a BOS before each; and what it holds.

    Raises:
        ValueError: the array in `work` was made from other files or by another tokenizer.
    """
    path = work / f"{split}.npz"
    texts = [document.text for document in stdlib_documents(split)]
    num_bytes = sum(len(text.encode()) for text in texts)
    if not path.exists():
        encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens = np.concatenate([np.array([tokenizer.bos_token_id, *e.ids], np.int32) for e in encoded])
        np.savez(path, tokens=tokens)
    tokens = np.load(path)["tokens"]
    # In a byte-level vocabulary an entry is written with one character for each of its bytes.
    bytes_of = {number: len(entry) for entry, number in tokenizer.get_vocab().items() if entry != BOS}
    found = np.array([bytes_of.get(number, 0) for number in range(len(tokenizer))])[tokens].sum()
    files = int((tokens == tokenizer.bos_token_id).sum())
    if (files, found) != (len(texts), num_bytes):
        raise ValueError(
            f"{path} holds {files:,} files of {found:,} bytes, this interpreter's {split} split "
            f"{len(texts):,} files of {num_bytes:,} bytes; delete --work {work} to start afresh."
        )
    return tokens, SplitSize(files=files, bytes=num_bytes, tokens=len(tokens) - files)


def rows_of(tokens: np.ndarray, context: int, offset: int, bos: int) -> Tensor:
    """Cut a stream into rows of `context` tokens, each with a BOS at its start."""
    usable = tokens[offset : offset + (len(tokens) - offset) // (context - 1) * (context - 1)]
    body = torch.from_numpy(usable.astype(np.int64)).view(-1, context - 1)
    return torch.cat([torch.full((len(body), 1), bos), body], dim=1)


def loss_of(model: LlamaForCausalLM, rows: Tensor, reduction: str = "mean", ignore_index: int = -100) -> Tensor:
    logits = model(rows, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction, ignore_index=ignore_index
    )


@torch.no_grad()
def held_out_nats(model: LlamaForCausalLM, rows: Tensor, ignore_index: int = -100) -> float:
    """Summed loss in nats over all predicted tokens, those equal to `ignore_index` left out."""
    return sum(loss_of(model, part, "sum", ignore_index).item() for part in rows.split(32))


def optimisers_of(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def lr_factor(step: int, num_steps: int) -> float:
    """Linear warm-up over 100 steps, flat, linear to zero over the last 40%."""
    return min((step + 1) / 100, 1.0, (num_steps - step) / (0.4 * num_steps))


def new_model(settings: Settings, bos: int) -> LlamaForCausalLM:
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocab_size,
            hidden_size=settings.d_model,
            intermediate_size=settings.d_model * 8 // 3 // 32 * 32,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_heads,
            max_position_embeddings=settings.context,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=bos,
        )
    )


def train(settings: Settings, tokens: np.ndarray, held_out: np.ndarray, bos: int) -> LlamaForCausalLM:
    """Train from the last checkpoint in `work`, or from the start, to the last step.

    Raises:
        ValueError: the checkpoint has seen more tokens than `settings.tokens`.
    """
    model = new_model(settings, bos)
    optimisers = optimisers_of(model, settings.lr)
    checkpoint = settings.work / "checkpoint.pt"
    first_step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, stored in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(stored)
        first_step = state["step"]
    num_steps = settings.tokens // settings.tokens_per_step
    tokens_seen = first_step * settings.tokens_per_step
    if first_step > num_steps:
        raise ValueError(
            f"tokens is {settings.tokens:,}, but {checkpoint} was trained on "
            f"{tokens_seen:,}; give at least that many, or another --work."
        )
    check_rows = rows_of(held_out, settings.context, 0, bos)[::25]
    earlier = [row for row in curve_of(settings.work) if row.tokens <= tokens_seen]
    started = time.time() - (earlier[-1].seconds if earlier else 0)
    for step in range(first_step, num_steps):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * lr_factor(step, num_steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch_at(step, settings, tokens, bos))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % settings.eval_every == 0 or step + 1 == num_steps:
            nats = held_out_nats(model, check_rows) / check_rows[:, 1:].numel()
            row = {
                "tokens": (step + 1) * settings.tokens_per_step,
                "train_loss": round(loss.item(), 4),
                "held_out_loss": round(nats, 4),
                "seconds": round(time.time() - started),
            }
            print(row, flush=True)
            with (settings.work / "curve.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            states = [optimiser.state_dict() for optimiser in optimisers]
            state = {"model": model.state_dict(), "optimisers": states, "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return model


def curve_of(work: Path) -> list[CurveRow]:
    """The loss curve so far; a step measured twice (stopped before its checkpoint) counts once."""
    path = work / "curve.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [CurveRow(**json.loads(line)) for line in lines]
    return sorted({row.tokens: row for row in rows}.values(), key=lambda row: row.tokens)


def batch_at(step: int, settings: Settings, tokens: np.ndarray, bos: int) -> Tensor:
    """The rows of one step: each epoch cuts the stream at another offset and shuffles the rows."""
    rows_per_epoch = (len(tokens) - settings.context) // (settings.context - 1)
    steps_per_epoch = rows_per_epoch // settings.batch_size
    epoch, index = divmod(step, steps_per_epoch)
    rng = np.random.default_rng([settings.seed, epoch])
    offset = rng.integers(settings.context - 1)
    picked = rng.permutation(rows_per_epoch)[index * settings.batch_size :][: settings.batch_size]
    starts = offset + picked * (settings.context - 1)
    body = np.stack([tokens[start : start + settings.context - 1] for start in starts])
    return torch.from_numpy(np.insert(body, 0, bos, axis=1).astype(np.int64))


def card_of(
    settings: Settings,
    model: LlamaForCausalLM,
    nats: dict[str, float],
    sizes: dict[str, SplitSize],
    sample: str,
) -> ModelCard:
    """The card of a model as shipped; its sizes are read from the model, its length from the curve."""
    curve = curve_of(settings.work)
    num_steps = curve[-1].tokens // settings.tokens_per_step
    rows_per_epoch = (sizes["train"].tokens + sizes["train"].files) / (settings.context - 1)
    changed = [
        f" --{field.name.replace('_', '-')} {getattr(settings, field.name)}"
        for field in dataclasses.fields(settings)
        if field.name not in ("out", "work") and getattr(settings, field.name) != field.default
    ]
    return ModelCard(
        command="python tools/train_embedded_lm.py" + "".join(changed),
        python_version=platform.python_version(),
        hardware=f"{os.cpu_count()} CPU cores ({platform.processor() or platform.machine()})",
        splits=sizes,
        context=settings.context,
        architecture={
            "parameters": f"{model.num_parameters():,}",
            "layers": str(model.config.num_hidden_layers),
            "d_model": str(model.config.hidden_size),
            "attention heads": str(model.config.num_attention_heads),
            "MLP neurons in a layer": str(model.config.intermediate_size),
            "context": str(model.config.max_position_embeddings),
            "vocabulary": str(model.config.vocab_size),
        },
        training={
            "steps": f"{num_steps:,}",
            "tokens, the BOS of each row included": f"{curve[-1].tokens:,}",
            "epochs": f"{num_steps * settings.batch_size / rows_per_epoch:.2f}",
            "sequences in a step": str(settings.batch_size),
            "peak learning rate": str(settings.lr),
            "seed": str(settings.seed),
        },
        curve=curve,
        nats=nats,
        prompt=PROMPT,
        sample=sample,
    )


def main(settings: Settings) -> None:
    settings.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(settings)
    bos = tokenizer.get_vocab()[BOS]
    tokens, train_size = tokens_of("train", tokenizer, settings.work)
    held_out, held_out_size = tokens_of("held_out", tokenizer, settings.work)
    print(f"{len(tokens):,} train tokens, {len(held_out):,} held-out tokens", flush=True)
    model = train(settings, tokens, held_out, bos)

    release = settings.work / "release"
    save_model(model, tokenizer, release)
    shipped = LlamaForCausalLM.from_pretrained(release, dtype=torch.float32)
    whole_rows = np.append(held_out, np.full(-len(held_out) % (settings.context - 1), bos, held_out.dtype))
    five_gram = KneserNey(tokens, bos=bos, vocab_size=settings.vocab_size)
    nats = {
        "this model": held_out_nats(shipped, rows_of(whole_rows, settings.context, 0, bos), ignore_index=bos),
        "5-gram model": float(five_gram.nats(held_out).sum()),
    }
    sizes = {"train": train_size, "held_out": held_out_size}
    card = card_of(settings, shipped, nats, sizes, sample_of(shipped, tokenizer))
    (release / "MODEL_CARD.md").write_text(card.text(), encoding="utf-8")
    check_release(release, nats, held_out_size.tokens)
    # copyfile: safetensors writes files that only their owner may read.
    shutil.copytree(release, settings.out, dirs_exist_ok=True, copy_function=shutil.copyfile)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
