"""Rows of texts and the activations made of them, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.activations.harvest import BEGINNING, Text, TrainingStream, fill_cache, masked_acts
from penstock.activations.screening import LeftOutTokens, check_finite, outlier_warning, passes_warning
from penstock.language_models.loading import LanguageModel
from penstock.language_models.stdlib_corpus import Split
from penstock.language_models.texts import documents
from penstock.language_models.tokens import Layout, TokenRows

BOS, PAD = 1, 0
SITES = ("resid_post.0", "resid_post.1")

MakeText = Callable[..., Text]


@pytest.fixture
def text(tiny_lm: LanguageModel, corpus: Path) -> MakeText:
    def make(
        source: Path | None = None,
        context: int = 16,
        packing: str = "packed",
        model: LanguageModel = tiny_lm,
        **options: Any,
    ) -> Text:
        return Text(
            model=model,
            source=str(source or corpus),
            text_field="text",
            context=context,
            packing=packing,  # type: ignore[arg-type]
            sites=SITES,
            **options,
        )

    return make


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def distinct(length: int, count: int) -> list[str]:
    """Texts of random letters, so that a hash sends about a tenth of them to the held-out split."""
    letters = torch.randint(97, 123, (count, length), generator=torch.Generator().manual_seed(0))
    return ["".join(map(chr, row)) for row in letters.tolist()]


def test_the_activations_are_the_models_at_the_positions_that_count(tiny_lm: LanguageModel) -> None:
    tokens = torch.tensor([[BOS, 5, 6, 7], [BOS, 8, PAD, PAD]])
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    acts = masked_acts(tiny_lm, TokenRows(tokens, mask), SITES, "cpu")
    whole = tiny_lm.activations(tokens, SITES)
    for site in SITES:
        expected = torch.stack([whole[site][0, 1], whole[site][0, 2], whole[site][0, 3], whole[site][1, 1]])
        assert torch.equal(acts[site], expected)


@pytest.mark.parametrize("packing", ["packed", "truncated"])
def test_bos_and_padding_are_left_out_of_the_stream(text: MakeText, packing: str) -> None:
    read = text(packing=packing)
    stream = TrainingStream(text=read, sites=SITES, batch_rows=8, device="cpu")
    harvested = sum(len(harvest.acts[SITES[0]]) for harvest in stream(BEGINNING))
    letters = [len(document.text) for document in documents(read.source, split="train")]
    kept = letters if packing == "packed" else [min(length, 15) for length in letters]
    assert harvested == sum(kept)


def test_a_stream_started_at_a_position_goes_on_with_the_same_activations(text: MakeText) -> None:
    stream = TrainingStream(text=text(context=32), sites=SITES, batch_rows=16, device="cpu")
    harvests = list(stream(BEGINNING))
    again = list(stream(harvests[2].position))
    assert len(again) == len(harvests) - 3
    for late, early in zip(again, harvests[3:], strict=True):
        assert late.position == early.position
        for site in SITES:
            assert torch.equal(late.acts[site], early.acts[site])


def test_a_cache_holds_the_first_activations_of_the_stream(text: MakeText) -> None:
    stream = TrainingStream(text=text(context=32), sites=SITES, batch_rows=16, device="cpu")
    cache = fill_cache(stream, 100, seed=0)
    whole = torch.cat([harvest.acts[SITES[1]] for harvest in stream(BEGINNING)])
    assert torch.equal(cache.acts[SITES[1]], whole[:100])
    assert fill_cache(stream, 10**9, seed=0).num_tokens == len(whole)


@pytest.mark.parametrize("split", ["held_out", "validation"])
def test_rows_of_the_other_splits_follow_the_seed_and_share_no_document(text: MakeText, split: Split) -> None:
    read = text(context=32)
    sample = getattr(read, split)
    rows = sample(200, seed=0)
    assert 200 <= int(rows.mask.sum()) < 200 + 31
    assert torch.equal(rows.tokens, sample(200, seed=0).tokens)
    assert not torch.equal(rows.tokens, sample(200, seed=1).tokens)

    others: set[Split] = {"train", "held_out", "validation"} - {split}
    train = "".join(document.text for other in others for document in documents(read.source, split=other))
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for row, mask in zip(rows.tokens, rows.mask, strict=True):
        run = "".join(letters[token - 3] if counts else " " for token, counts in zip(row, mask, strict=True))
        for part in run.split():
            # Seven random letters are as good as a fingerprint.
            assert len(part) < 7 or part not in train


def test_held_out_takes_all_there_is_where_there_is_less(text: MakeText) -> None:
    read = text()
    rows = read.held_out(10**6, seed=0)
    assert int(rows.mask.sum()) == sum(len(d.text) for d in documents(read.source, split="held_out"))


def test_held_out_reaches_its_size_with_documents_much_shorter_than_a_row(text: MakeText, tmp_path: Path) -> None:
    short = write_corpus(tmp_path / "short.jsonl", distinct(length=3, count=2000))
    rows = text(short, context=200, packing="truncated").held_out(300, seed=0)
    assert int(rows.mask.sum()) == 300


def test_a_text_of_few_documents_has_no_validation_rows(text: MakeText, tmp_path: Path) -> None:
    every = write_corpus(tmp_path / "all.jsonl", distinct(length=30, count=60))
    splits: list[Split] = ["train", "held_out"]
    kept = [document.text for split in splits for document in documents(every, split=split)]
    assert len(kept) < 60
    assert text(write_corpus(tmp_path / "few.jsonl", kept)).validation(100, seed=0) is None


def test_a_fair_text_passes_the_check(text: MakeText) -> None:
    text().check()
    text(packing="truncated").check()


def test_documents_of_one_token_fail_before_the_training(text: MakeText, tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "single.jsonl", list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    with pytest.raises(ValueError, match="one token each.*nothing to predict.*longer documents"):
        text(path).check()


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_split_without_documents_fails_before_the_training(text: MakeText, tmp_path: Path, split: str) -> None:
    all_texts = write_corpus(tmp_path / "all.jsonl", distinct(length=30, count=60))
    other = "held_out" if split == "train" else "train"
    only = [document.text for document in documents(all_texts, split=other)]
    path = write_corpus(tmp_path / "one_split.jsonl", only)
    with pytest.raises(ValueError, match=f"No documents in split '{split}'"):
        text(path).check()


def test_an_empty_cache_is_an_error(text: MakeText, tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "empty.jsonl", [""])
    stream = TrainingStream(text=text(path), sites=SITES, batch_rows=4, device="cpu")
    with pytest.raises(ValueError, match="No documents in split 'train'"):
        fill_cache(stream, 100, seed=0)


def test_a_stream_goes_on_without_tokenising_what_lies_before(text: MakeText, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TrainingStream(text=text(context=32), sites=SITES, batch_rows=16, device="cpu")
    harvests = list(stream(BEGINNING))
    seen: list[str] = []
    encode = Layout._encode

    def watched(self: Layout, texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(Layout, "_encode", watched)
    list(stream(harvests[-3].position))
    train = [document.text for document in documents(stream.text.source, split="train")]
    assert len(seen) < len(train) / 2
    assert seen == train[-len(seen) :]


@pytest.fixture
def spoil(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Multiplies the activations of the letter c (id 5) at the second site by a factor."""
    original = LanguageModel.activations

    def by(factor: float) -> None:
        def activations(self: LanguageModel, tokens: torch.Tensor, sites: Any) -> dict[str, torch.Tensor]:
            acts = original(self, tokens, sites)
            if SITES[1] in acts:
                acts[SITES[1]][tokens == 5] *= factor
            return acts

        monkeypatch.setattr(LanguageModel, "activations", activations)

    return by


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_an_error_that_names_site_dtype_token_and_remedy(
    text: MakeText, spoil: Callable[[float], None], bad: float
) -> None:
    spoil(bad)
    expected = (
        r"resid_post\.1 is NaN or infinite for \d+ of \d+ tokens.*'c' \(id 5\) at position \d+.*before any SAE.*"
        r"float32: check its weights.*skip_nonfinite"
    )
    stream = TrainingStream(text=text(), sites=SITES, batch_rows=8, device="cpu")
    with pytest.raises(ValueError, match=expected):
        list(stream(BEGINNING))
    with pytest.raises(ValueError, match=expected):
        fill_cache(stream, 1000, seed=0)
    rows, _ = next(text().rows("train", batch_rows=8))
    with pytest.raises(ValueError, match=expected):
        masked_acts(stream.text.model, rows, SITES, "cpu")


def test_float16_is_named_as_the_cause(tiny_lm: LanguageModel) -> None:
    rows = TokenRows(torch.tensor([[BOS, 5]]), torch.tensor([[False, True]]))
    acts = {"resid_post.0": torch.full((1, 2, 3), float("inf"), dtype=torch.float16)}
    with pytest.raises(ValueError, match="float16, which ends at 65504: use bfloat16 or float32"):
        check_finite(tiny_lm, rows, acts)
    check_finite(tiny_lm, rows._replace(mask=torch.zeros(1, 2, dtype=torch.bool)), acts)


def test_tokens_that_are_not_finite_are_left_out_and_counted_on_request(
    text: MakeText, spoil: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(float("nan"))
    read = text(skip_nonfinite=True)
    stream = TrainingStream(text=read, sites=SITES, batch_rows=8, device="cpu")
    letters = "".join(document.text for document in documents(read.source, split="train"))

    harvests = list(stream(BEGINNING))
    cache = fill_cache(stream, 10**9, seed=0)

    assert sum(harvest.left_out.nonfinite for harvest in harvests) == letters.count("c") > 0
    assert cache.num_tokens == len(letters) - letters.count("c")
    assert cache.left_out == LeftOutTokens(nonfinite=letters.count("c"))
    assert cache.acts[SITES[1]].isfinite().all()
    assert caplog.text.count("are NaN or infinite") == 1
    rows = read.held_out(500, seed=0)
    assert not (rows.mask & (rows.tokens == 5)).any()


def test_far_too_long_tokens_are_left_out_on_request(text: MakeText, spoil: Callable[[float], None]) -> None:
    spoil(100.0)
    read = text(max_norm_multiple=10.0)
    stream = TrainingStream(text=read, sites=SITES, batch_rows=8, device="cpu")
    letters = "".join(document.text for document in documents(read.source, split="train"))

    cache = fill_cache(stream, 10**9, seed=0)

    assert cache.left_out == LeftOutTokens(high_norm=letters.count("c"))
    assert cache.num_tokens == len(letters) - letters.count("c")
    rows = read.held_out(500, seed=0)
    assert not (rows.mask & (rows.tokens == 5)).any()
    assert outlier_warning(cache.acts[SITES[1]], SITES[1]) is None


def test_few_tokens_that_hold_most_of_the_norm_draw_a_warning() -> None:
    acts = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    assert outlier_warning(acts, "resid_post.1") is None
    acts[:20] *= 50
    warning = outlier_warning(acts, "resid_post.1")
    assert warning and "at resid_post.1 " in warning and "max_norm_multiple" in warning
    assert outlier_warning(acts[:100], "resid_post.1") is None
    assert outlier_warning(torch.zeros(1000, 8), "resid_post.1") is None


def test_more_than_four_passes_draw_a_warning() -> None:
    assert passes_warning(4.0) is None
    assert "5.5 times over the same activations" in (passes_warning(5.5) or "")
