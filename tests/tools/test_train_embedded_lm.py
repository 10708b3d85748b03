"""The tool that makes the embedded language model, on a tiny library and a tiny model."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_embedded_lm as tool
from model_card import CurveRow, curve_table, sparkline
from ngram import KneserNey
from penstock.language_models.stdlib_corpus import Document, Split
from release import check_release


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose time to threads waiting for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def tiny_library(split: Split) -> Iterator[Document]:
    seed, files = {"train": (0, 60), "held_out": (1, 7)}[split]
    rng = np.random.default_rng(seed)
    for number in range(files):
        names = rng.choice(["größe", "value", "path", "node"], size=rng.integers(2, 9))
        text = "".join(f"def get_{name}(self):\n    return self.{name}\n\n" for name in names)
        yield Document(f"{split}_{number}.py", text)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tool.Settings:
    monkeypatch.setattr(tool, "stdlib_documents", tiny_library)
    return tool.Settings(
        out=tmp_path / "out",
        work=tmp_path / "work",
        tokens=10 * 4 * 32,
        vocab_size=300,
        d_model=32,
        num_layers=1,
        num_heads=2,
        context=32,
        batch_size=4,
        eval_every=4,
    )


def weights_of(settings: tool.Settings) -> dict[str, torch.Tensor]:
    return torch.load(settings.work / "checkpoint.pt", weights_only=True)["model"]


def row_by_row_nats(folder: Path) -> tuple[float, int]:
    """Loss of a shipped model over the held-out library, and its tokens, one token after the other."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stream = []
    for document in tiny_library("held_out"):
        stream += [tokenizer.bos_token_id, *tokenizer(document.text)["input_ids"]]
    nats, num_tokens = 0.0, 0
    for start in range(0, len(stream), 31):
        row = [tokenizer.bos_token_id, *stream[start : start + 31]]
        with torch.no_grad():
            log_probs = model(torch.tensor([row])).logits[0].log_softmax(dim=-1)
        for position, token in enumerate(row[1:]):
            if token != tokenizer.bos_token_id:
                nats -= log_probs[position, token].item()
                num_tokens += 1
    return nats, num_tokens


def test_a_model_that_does_not_beat_the_5_gram_is_refused_and_nothing_is_shipped(
    settings: tool.Settings,
) -> None:
    with pytest.raises(RuntimeError, match="does not beat that of 5-gram model.*Nothing was written to --out"):
        tool.main(settings)
    assert not settings.out.exists()
    assert "5-gram model" in (settings.work / "release" / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_model_that_beats_the_yardstick_is_shipped_with_the_losses_measured_on_what_was_shipped(
    settings: tool.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "KneserNey", partial(KneserNey, order=1))
    monkeypatch.setattr(tool, "lr_factor", lambda step, num_steps: 1.0)
    tool.main(dataclasses.replace(settings, tokens=40 * 4 * 32))
    assert {path.name for path in settings.out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "MODEL_CARD.md",
    }
    card = (settings.out / "MODEL_CARD.md").read_text(encoding="utf-8")
    nats, num_tokens = row_by_row_nats(settings.out)
    num_bytes = sum(len(document.text.encode()) for document in tiny_library("held_out"))
    [line] = [line for line in card.splitlines() if line.startswith("| this model")]
    per_token, per_byte = (float(cell) for cell in line.strip("| ").split("|")[1:])
    assert per_token == pytest.approx(nats / num_tokens, abs=1e-4)
    assert per_byte == pytest.approx(nats / num_bytes, abs=1e-4)
    assert f"| held_out | 7 | {num_bytes:,} | {num_tokens:,} |" in card
    assert str(settings.work) not in card and str(settings.out) not in card


def test_the_shipped_tokenizer_gives_every_text_back(settings: tool.Settings) -> None:
    settings.work.mkdir()
    tokenizer = tool.train_tokenizer(settings)
    tool.save_model(tool.new_model(settings, bos=0), tokenizer, settings.out)
    shipped = AutoTokenizer.from_pretrained(settings.out)
    text = "# naïve ,  '日本' !\n\tdef f (x) :\n        return x . y\n"
    assert shipped.decode(shipped(text)["input_ids"]) == text
    assert (shipped.bos_token, shipped.bos_token_id, len(shipped)) == (tool.BOS, 0, len(tokenizer))


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    settings: tool.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.work.mkdir()
    tokenizer = tool.train_tokenizer(settings)
    tokens, _ = tool.tokens_of("train", tokenizer, settings.work)
    held_out, _ = tool.tokens_of("held_out", tokenizer, settings.work)
    stopped = dataclasses.replace(settings, work=tmp_path / "stopped")
    stopped.work.mkdir()
    batch_at = tool.batch_at

    def stop_at_6(step: int, settings: tool.Settings, tokens: np.ndarray, bos: int) -> torch.Tensor:
        if step == 6:
            raise KeyboardInterrupt
        return batch_at(step, settings, tokens, bos)

    tool.train(settings, tokens, held_out, bos=0)
    monkeypatch.setattr(tool, "batch_at", stop_at_6)
    with pytest.raises(KeyboardInterrupt):
        tool.train(stopped, tokens, held_out, bos=0)
    monkeypatch.setattr(tool, "batch_at", batch_at)
    tool.train(stopped, tokens, held_out, bos=0)
    straight, resumed = weights_of(settings), weights_of(stopped)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert [row.tokens for row in tool.curve_of(stopped.work)] == [512, 1024, 1280]


def test_a_finished_training_is_not_trained_again_and_fewer_tokens_are_refused(
    settings: tool.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.work.mkdir()
    tokens = held_out = np.arange(1000) % 300
    tool.train(settings, tokens, held_out, bos=0)
    monkeypatch.setattr(tool, "batch_at", lambda *args: pytest.fail("trained again"))
    again = tool.train(settings, tokens, held_out, bos=0).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in weights_of(settings).items())
    with pytest.raises(ValueError, match="tokens is 1,000, but .* was trained on 1,280"):
        tool.train(dataclasses.replace(settings, tokens=1000), tokens, held_out, bos=0)


def test_token_arrays_of_another_library_are_refused(settings: tool.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.work.mkdir()
    tokenizer = tool.train_tokenizer(settings)
    tool.tokens_of("held_out", tokenizer, settings.work)
    monkeypatch.setattr(tool, "stdlib_documents", lambda split: [*tiny_library(split), Document("new.py", "pass")])
    with pytest.raises(ValueError, match="holds 7 files of .* 8 files of .* delete --work"):
        tool.tokens_of("held_out", tokenizer, settings.work)


def test_a_folder_over_the_size_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(8_000_001))
    with pytest.raises(RuntimeError, match="holds 8,000,001 bytes, 8,000,000 are allowed"):
        check_release(tmp_path, {"this model": 1.0, "5-gram model": 2.0}, num_tokens=1)


def test_the_curve_table_has_a_dozen_rows_with_the_first_and_the_last() -> None:
    curve = [CurveRow(tokens=n, train_loss=3.0, held_out_loss=3.5, seconds=n) for n in range(1, 101)]
    rows = curve_table(curve).splitlines()[2:]
    assert len(rows) == 12
    assert rows[0].startswith("| 1 |") and rows[-1].startswith("| 100 |")
    assert len(curve_table(curve[:1]).splitlines()) == 3


def test_the_sparkline_spans_lowest_to_highest_and_a_flat_curve_is_drawn() -> None:
    assert sparkline([8.0, 4.5, 1.0]) == "█▅▁"
    assert sparkline([math.pi] * 3) == "▁▁▁"
