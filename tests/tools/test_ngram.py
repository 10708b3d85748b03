"""The 5-gram yardstick: hand-computed cases, a plain reference, and normalisation."""

from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest

from ngram import FALLBACK_DISCOUNTS, KneserNey

BOS = 0


def random_documents(num_tokens: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    """Tokens of a skewed second-order process, a document of about 50 tokens after each BOS."""
    rng = np.random.default_rng(seed)
    tokens = [BOS]
    while len(tokens) < num_tokens:
        if tokens[-1] != BOS and rng.random() < 0.02:
            tokens.append(BOS)
        elif rng.random() < 0.8:
            tokens.append(1 + (tokens[-1] + 2 * tokens[-2:][0]) % (vocab_size - 1))
        else:
            tokens.append(1 + int((vocab_size - 1) * rng.random() ** 2))
    return np.array(tokens)


def all_windows(vocab_size: int, order: int) -> np.ndarray:
    return np.array(list(product(range(vocab_size), repeat=order)))


def reference_probability(tokens: np.ndarray, window: tuple[int, ...], vocab_size: int) -> float:
    """The recursion as the paper writes it, with dictionaries and the fallback discounts."""
    order = len(window)
    text, counts = [], Counter()
    for token in tokens.tolist():
        text = [BOS] * order if token == BOS else [*text, token]
        if token != BOS:
            counts[tuple(text[-order:])] += 1
    by_length = {order: counts}
    for length in range(order - 1, 0, -1):
        before = defaultdict(set)
        for ngram in by_length[length + 1]:
            before[ngram[1:]].add(ngram[0])
        by_length[length] = Counter({ngram: len(tokens) for ngram, tokens in before.items()})
    probability = 1 / vocab_size
    for length in range(1, order + 1):
        ngram = window[-length:]
        followers = {k: c for k, c in by_length[length].items() if k[:-1] == ngram[:-1]}
        if followers:
            total = sum(followers.values())
            gamma = sum(FALLBACK_DISCOUNTS[min(c, 3)] for c in followers.values()) / total
            count = followers.get(ngram, 0)
            probability = (count - FALLBACK_DISCOUNTS[min(count, 3)]) / total + gamma * probability
    return probability


def test_a_bigram_model_gives_the_probabilities_computed_by_hand() -> None:
    # Documents "1 2 1 2" and "1 3". Bigram counts 01: 2, 12: 2, 21: 1, 13: 1; tokens before 1: {0, 2},
    # before 2: {1}, before 3: {1}. No n-gram is seen 4 times, so D1 = 0.5, D2 = 1.
    # Order 1: gamma = (1 + 0.5 + 0.5) / 4 = 1/2, P(0, 1, 2, 3) = 1/8, 3/8, 1/4, 1/4.
    # Order 2 after 1: gamma = (1 + 0.5) / 3 = 1/2.
    model = KneserNey(np.array([0, 1, 2, 1, 2, 0, 1, 3]), bos=BOS, vocab_size=4, order=2)
    after_one = model.probability(np.array([[1, 0], [1, 1], [1, 2], [1, 3]]))
    np.testing.assert_allclose(after_one, [1 / 16, 3 / 16, 1 / 3 + 1 / 8, 1 / 6 + 1 / 8])
    after_unseen = model.probability(np.array([[3, 0], [3, 1], [3, 2], [3, 3]]))
    np.testing.assert_allclose(after_unseen, [1 / 8, 3 / 8, 1 / 4, 1 / 4])


def test_a_unigram_model_gives_discounted_frequencies_with_the_estimated_discounts() -> None:
    # Tokens 1-4 once, 5-6 twice, 7 three times, 8 four times: n = 4, 2, 1, 1, Y = 4 / (4 + 2 * 2) = 1/2,
    # D1 = 1 - 2Y * 2/4 = 0.5, D2 = 2 - 3Y * 1/2 = 1.25, D3+ = 3 - 4Y * 1/1 = 1; removed 6.5 of 15.
    tokens = np.repeat(np.arange(9), [1, 1, 1, 1, 1, 2, 2, 3, 4])
    model = KneserNey(tokens, bos=BOS, vocab_size=9, order=1)
    spread = 6.5 / 15 / 9
    expected = [0, 0.5 / 15, 0.5 / 15, 0.5 / 15, 0.5 / 15, 0.75 / 15, 0.75 / 15, 2 / 15, 3 / 15]
    np.testing.assert_allclose(model.probability(np.arange(9)[:, None]), np.add(expected, spread))


def test_a_unigram_model_of_a_long_text_gives_the_relative_frequencies() -> None:
    tokens = np.array([BOS, *[1, 1, 1, 2, 3, 3] * 10_000])
    model = KneserNey(tokens, bos=BOS, vocab_size=4, order=1)
    np.testing.assert_allclose(model.probability(np.array([[1], [2], [3]])), [1 / 2, 1 / 6, 1 / 3], atol=1e-4)


def test_it_equals_the_recursion_written_with_dictionaries() -> None:
    tokens = np.array([0, 1, 2, 1, 3, 2, 1, 2, 1, 3, 3, 0, 2, 1, 2, 1, 3, 1, 0, 3, 1, 2])
    model = KneserNey(tokens, bos=BOS, vocab_size=4, order=3)
    windows = all_windows(vocab_size=4, order=3)
    expected = [reference_probability(tokens, tuple(window), 4) for window in windows.tolist()]
    np.testing.assert_allclose(model.probability(windows), expected)


@pytest.mark.parametrize("num_tokens", [30, 3000])
def test_probabilities_sum_to_one_after_every_context_seen_or_not(num_tokens: int) -> None:
    model = KneserNey(random_documents(num_tokens, vocab_size=6), bos=BOS, vocab_size=6)
    probability = model.probability(all_windows(vocab_size=6, order=5))
    assert probability.min() > 0
    np.testing.assert_allclose(probability.reshape(6**4, 6).sum(axis=1), 1)


def test_structure_is_worth_more_than_frequencies_and_no_more_than_its_entropy() -> None:
    # After a digit comes the next one (mod 8) with probability 0.93, any of the 8 with 0.07.
    rng = np.random.default_rng(0)
    jumps = np.where(rng.random(40_000) < 0.93, 1, rng.integers(8, size=40_000))
    train, held_out = np.split(np.insert(1 + np.cumsum(jumps) % 8, [0, 30_000], BOS), [30_001])
    share = 0.93 + 0.07 / 8
    entropy = -share * np.log(share) - 7 * 0.07 / 8 * np.log(0.07 / 8)
    unigram = KneserNey(train, bos=BOS, vocab_size=9, order=1).nats(held_out).mean()
    five_gram = KneserNey(train, bos=BOS, vocab_size=9).nats(held_out).mean()
    assert unigram == pytest.approx(np.log(8), abs=0.01)
    assert entropy - 0.03 < five_gram < entropy + 0.1


def test_every_token_but_bos_is_predicted_and_only_from_its_own_document() -> None:
    model = KneserNey(random_documents(500, vocab_size=6), bos=BOS, vocab_size=6)
    first, second = np.array([0, 1, 2, 3, 4]), np.array([0, 5, 5, 1])
    together = model.nats(np.concatenate([first, second]))
    assert len(together) == 7
    np.testing.assert_array_equal(together, np.concatenate([model.nats(first), model.nats(second)]))


def test_n_grams_that_do_not_fit_64_bits_are_refused_with_the_largest_order_that_fits() -> None:
    with pytest.raises(ValueError, match="order 6 with vocab_size 4096 needs 72 bits.*at most 5"):
        KneserNey(np.array([0, 1]), bos=BOS, vocab_size=4096, order=6)


def test_a_stream_without_bos_at_its_start_or_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must start with the BOS token 0, got \[1, 2\]"):
        KneserNey(np.array([1, 2]), bos=BOS, vocab_size=4)
    with pytest.raises(ValueError, match="nothing but BOS"):
        KneserNey(np.array([0, 0]), bos=BOS, vocab_size=4)
