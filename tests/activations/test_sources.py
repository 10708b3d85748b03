"""Both sources against a stream whose activations are their own numbers."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import safetensors.torch
import torch
from torch import Tensor

from penstock.activations.screening import LeftOutTokens
from penstock.activations.sources import (
    ActivationCache,
    ActivationSource,
    Harvest,
    ShuffleBuffer,
    Stream,
    measure_scale,
)
from penstock.files import safetensors_blocks
from penstock.language_models.stdlib_corpus import Place
from penstock.language_models.tokens import Position

ROWS, ROW_TOKENS = 30, 10
TEXT_TOKENS = ROWS * ROW_TOKENS


def sites_of(numbers: Tensor) -> dict[str, Tensor]:
    """Two sites of different width: the token's number, and twice minus it."""
    return {"a": numbers[:, None], "b": -numbers[:, None].expand(-1, 2).clone()}


def at(row: int) -> Position:
    """The row's number stands where a text has the number of a document."""
    return Position(Place(0, row), 7)


def numbered_stream(rows: int = ROWS, batch_rows: int = 4) -> Stream:
    """Token t of row r is the number r * ROW_TOKENS + t."""

    def stream(start: Position) -> Iterator[Harvest]:
        for row in range(start.place.document, rows, batch_rows):
            end = min(row + batch_rows, rows)
            numbers = torch.arange(row * ROW_TOKENS, end * ROW_TOKENS).float()
            yield Harvest(sites_of(numbers), at(end), LeftOutTokens(1, 2))

    return stream


def buffer(capacity: int = 100, seed: int = 0) -> ShuffleBuffer:
    return ShuffleBuffer(numbered_stream(), capacity=capacity, seed=seed)


def cache(seed: int = 0) -> ActivationCache:
    return ActivationCache(sites_of(torch.arange(TEXT_TOKENS).float()), seed=seed)


def numbers_of(batch: dict[str, Tensor]) -> list[int]:
    return [int(number) for number in batch["a"][:, 0]]


def drawn(source: ActivationSource, batches: int, batch_size: int) -> list[list[int]]:
    return [numbers_of(source.next_batch(batch_size)) for _ in range(batches)]


both = pytest.mark.parametrize("make", [buffer, cache])


def test_a_pass_over_the_cache_serves_every_activation_once_and_batches_may_span_two_passes() -> None:
    source = cache()
    served = [number for batch in drawn(source, 6, 100) for number in batch]
    assert sorted(served[:TEXT_TOKENS]) == list(range(TEXT_TOKENS))
    assert sorted(served[TEXT_TOKENS:]) == list(range(TEXT_TOKENS))
    assert served[:TEXT_TOKENS] != served[TEXT_TOKENS:]
    spanning = cache()
    served = [number for batch in drawn(spanning, 9, 70) for number in batch]
    assert sorted(served[:TEXT_TOKENS]) == list(range(TEXT_TOKENS))
    assert sorted(served[TEXT_TOKENS : 2 * TEXT_TOKENS]) == list(range(TEXT_TOKENS))


@pytest.mark.parametrize("capacity", [40, 100, 1000])
def test_the_buffer_serves_every_harvested_activation_exactly_once(capacity: int) -> None:
    harvested: Counter[int] = Counter()

    def counting(start: Position) -> Iterator[Harvest]:
        for harvest in numbered_stream()(start):
            harvested.update(numbers_of(harvest.acts))
            yield harvest

    source = ShuffleBuffer(counting, capacity=capacity, seed=0)
    served = Counter(number for batch in drawn(source, 40, 25) for number in batch)
    assert served.total() == 1000
    assert not served - harvested
    # What was not served waits in the window, which one harvest of 4 rows may overfill.
    assert (harvested - served).total() <= capacity + 4 * ROW_TOKENS


@both
def test_the_sites_of_a_token_stay_together(make: Callable[[], ActivationSource]) -> None:
    source = make()
    for _ in range(30):
        batch = source.next_batch(25)
        assert batch["b"].shape == (25, 2)
        assert torch.equal(batch["b"], -batch["a"].expand(-1, 2))
    sample = source.sample(20, torch.Generator())
    assert torch.equal(sample["b"], -sample["a"].expand(-1, 2))


@both
def test_a_batch_draws_from_many_rows_in_no_order(make: Callable[[], ActivationSource]) -> None:
    source = make()
    for batch in drawn(source, 8, 30):
        rows = {number // ROW_TOKENS for number in batch}
        assert len(rows) >= 7
        neighbours = sum(b == a + 1 for a, b in zip(batch, batch[1:], strict=False))
        assert neighbours <= 5


@both
def test_the_order_follows_the_seed_alone(make: Callable[..., ActivationSource]) -> None:
    assert drawn(make(), 20, 25) == drawn(make(), 20, 25)
    assert drawn(make(), 20, 25) != drawn(make(seed=1), 20, 25)


def from_disk(source: ActivationSource) -> dict[str, Tensor]:
    return safetensors.torch.load(b"".join(safetensors_blocks(source.state())))


@both
@pytest.mark.parametrize("before", [0, 1, 5, 12, 13, 24, 31])
def test_a_saved_source_goes_on_with_the_same_batches(make: Callable[[], ActivationSource], before: int) -> None:
    source = make()
    source.sample(10, torch.Generator())
    drawn(source, before, 25)
    state = from_disk(source)
    expected = drawn(source, 40, 25)
    counts = source.passes, source.unique_tokens

    restored = make()
    drawn(restored, 3, 25)
    restored.load_state(state)
    assert drawn(restored, 40, 25) == expected
    assert (restored.passes, restored.unique_tokens) == counts


def test_the_state_of_a_buffer_holds_only_the_rows_that_are_not_served_yet() -> None:
    source = buffer()
    drawn(source, 1, 25)
    held = len(from_disk(source)["acts/a"])
    drawn(source, 1, 25)
    assert len(from_disk(source)["acts/a"]) == held - 25


@pytest.mark.parametrize("fails_at", [2, 3, 4, 7])
def test_a_stream_that_fails_in_the_middle_of_a_refill_loses_no_activation(fails_at: int) -> None:
    """The state after the error is the one before it, so that whoever goes on sees the same batches."""
    drawn_rows = 0
    failing = False

    def stream(start: Position) -> Iterator[Harvest]:
        nonlocal drawn_rows
        for harvest in numbered_stream()(start):
            drawn_rows += 1
            if failing and drawn_rows == fails_at:
                raise ConnectionError("dropped")
            yield harvest

    def make(stream: Stream) -> ShuffleBuffer:
        return ShuffleBuffer(stream, capacity=120, seed=0)

    whole = make(numbered_stream())
    expected = drawn(whole, 40, 25)
    broken = make(stream)
    before = drawn(broken, 12, 25)
    drawn_rows, failing = 0, True
    with pytest.raises(ConnectionError):
        while True:
            before += drawn(broken, 1, 25)
    resumed = make(numbered_stream())
    resumed.load_state(from_disk(broken))
    failing = False
    for source in (resumed, broken):
        assert before + drawn(source, 40 - len(before), 25) == expected
        assert (source.passes, source.unique_tokens) == (whole.passes, whole.unique_tokens)


def test_the_cache_goes_on_in_the_middle_of_a_pass_and_at_its_end() -> None:
    for batch_size in (7, 100):
        source, restored = cache(), cache()
        drawn(source, 3, batch_size)
        restored.load_state(from_disk(source))
        assert drawn(restored, 70, batch_size) == drawn(source, 70, batch_size)


def test_a_buffer_goes_on_at_its_position_and_harvests_only_what_the_checkpoint_lacks() -> None:
    starts: list[Position] = []
    harvested: list[int] = []

    def watched(start: Position) -> Iterator[Harvest]:
        starts.append(start)
        for harvest in numbered_stream()(start):
            harvested.append(len(harvest.acts["a"]))
            yield harvest

    source = buffer()
    drawn(source, 2, 25)
    restored = ShuffleBuffer(watched, capacity=100, seed=0)
    restored.load_state(from_disk(source))

    assert restored.position == source.position == at(12)
    assert restored.left_out == source.left_out == LeftOutTokens(3, 6)
    assert harvested == []
    assert drawn(restored, 20, 25) == drawn(source, 20, 25)
    assert starts[0] == at(12)


def test_a_checkpoint_without_a_position_is_an_error() -> None:
    state = from_disk(buffer()) | {"counters": torch.zeros(5, dtype=torch.long)}
    with pytest.raises(ValueError, match="does not hold the document at which its text continues.*older version"):
        buffer().load_state(state)


@both
def test_a_sample_does_not_move_the_source(make: Callable[[], ActivationSource]) -> None:
    alone, sampled = make(), make()
    for batch_size in (80, 25, 60, 25):
        sample = numbers_of(sampled.sample(15, torch.Generator().manual_seed(3)))
        # The window may hold a token of the end of one pass again from the start of the next.
        assert len(sample) == 15
        assert len(set(sample)) >= 12
        assert drawn(sampled, 5, batch_size) == drawn(alone, 5, batch_size)


@both
def test_a_sample_follows_its_generator_and_holds_at_most_what_there_is(
    make: Callable[[], ActivationSource],
) -> None:
    source = make()
    samples = [numbers_of(source.sample(20, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert len(numbers_of(source.sample(10**6, torch.Generator()))) in (120, TEXT_TOKENS)


def test_passes_and_unique_tokens_of_a_cache_follow_what_was_served() -> None:
    source = cache()
    assert (source.passes, source.unique_tokens) == (0, 0)
    drawn(source, 3, 50)
    assert (source.passes, source.unique_tokens) == (0.5, 150)
    drawn(source, 12, 50)
    assert (source.passes, source.unique_tokens) == (2.5, TEXT_TOKENS)


def test_passes_and_unique_tokens_of_a_buffer_count_what_was_served_and_not_what_it_holds() -> None:
    source = buffer()
    drawn(source, 2, 25)
    assert (source.restarts, source.passes, source.unique_tokens) == (0, 1.0, 50)
    drawn(source, 28, 25)
    assert source.restarts == 2
    assert source.passes == pytest.approx(750 / TEXT_TOKENS)
    assert source.unique_tokens == TEXT_TOKENS


def test_a_buffer_larger_than_the_text_does_not_pretend_to_more_passes_or_tokens() -> None:
    source = buffer(capacity=10 * TEXT_TOKENS)
    drawn(source, 4, 25)
    assert source.restarts == 9
    assert source.passes == 1.0
    assert source.unique_tokens == 100


@pytest.mark.parametrize("rows", [0, 3])
def test_a_text_without_activations_is_an_error_and_no_endless_loop(rows: int) -> None:
    def empty(start: Position) -> Iterator[Harvest]:
        for row in range(rows):
            yield Harvest(sites_of(torch.empty(0)), at(row + 1))

    with pytest.raises(ValueError, match="no activations to train on.*Check data.text"):
        ShuffleBuffer(empty, capacity=10, seed=0).next_batch(2)


def test_the_scale_gives_unit_mean_squared_norm() -> None:
    # |(3, 4)|^2 = 25, |(0, 1)|^2 = 1, |(1, 3)|^2 = 10: the mean is 12.
    scale = measure_scale([torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[1.0, 3.0]])])
    assert scale == pytest.approx(1 / 12**0.5)


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_activations_without_a_scale_are_an_error_with_the_remedy(bad: float) -> None:
    with pytest.raises(ValueError, match="mean squared norm .* is (0.0|inf|nan);.*Check the site.*dtype"):
        measure_scale([torch.full((3, 2), bad)])
