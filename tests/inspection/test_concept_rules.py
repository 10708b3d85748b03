"""Kinds of concept: planted latents are told apart, and every F1 is that of plain loops."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from penstock.inspection.concept_rules import (
    CONTEXT,
    FIRST,
    KINDS,
    NO_RULE,
    RULES,
    STATES,
    Kinds,
    Rule,
    describe,
    kind_shares,
    kinds,
)
from penstock.inspection.token_facts import CLASSES, NO_TOKEN, REGIONS, TokenFacts
from penstock.language_models.model_source import EMBEDDED_FOLDER
from penstock.sparse import SparseCode

if TYPE_CHECKING:
    pass

ROWS, WIDTH = 40, 50
VOCAB = 12


def random_facts(rows: int = ROWS, width: int = WIDTH, seed: int = 0) -> TokenFacts:
    """Random tokens; a token's class is its id modulo 4, and the states of code are drawn on their own."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(values: int) -> Tensor:
        return torch.randint(values, (rows * width,), generator=generator)

    token = drawn(VOCAB)
    position = torch.arange(width).repeat(rows)
    previous = token.roll(1).where(position > 0, NO_TOKEN)
    before_previous = token.roll(2).where(position > 1, NO_TOKEN)
    row = torch.arange(rows).repeat_interleave(width)
    return TokenFacts(row, position, token, previous, before_previous, token % 4, drawn(3), drawn(4), drawn(2))


def code_of(*firing: Tensor) -> SparseCode:
    """A code of these latents, given by the tokens on which they fire; values vary, and one is negative."""
    acts = torch.stack(firing, dim=1).float() * torch.linspace(-1, 2, len(firing[0]))[:, None]
    return SparseCode.from_dense(acts)


def at_random(facts: TokenFacts, share: float, seed: int = 1) -> Tensor:
    return torch.rand(len(facts.token), generator=torch.Generator().manual_seed(seed)) < share


PLANTED: dict[str, tuple[Callable[[TokenFacts], Tensor], Rule]] = {
    "token": (lambda facts: facts.token == 7, Rule("token", 7)),
    "class": (lambda facts: facts.token_class == 2, Rule("class", 2)),
    "position": (lambda facts: facts.position == 0, Rule("position", 1)),
    "positions": (lambda facts: facts.position < 4, Rule("position", 4)),
    "previous": (lambda facts: facts.previous == 3, Rule("previous token", 3)),
    "string": (lambda facts: facts.region == 1, Rule("code state", STATES.index("in a string"))),
    "comment": (lambda facts: facts.region == 2, Rule("code state", STATES.index("in a comment"))),
    "indentation": (lambda facts: facts.indentation == 0, Rule("code state", STATES.index("at indentation 0"))),
    "deep": (lambda facts: facts.indentation == 3, Rule("code state", STATES.index("at indentation 3 or more"))),
    "brackets": (lambda facts: facts.in_brackets == 1, Rule("code state", STATES.index("in brackets"))),
    "bigram": (lambda facts: (facts.previous == 3) & (facts.token == 5), Rule("bigram", 4 * 2**32 + 5)),
    "opening bigram": (lambda facts: (facts.previous == NO_TOKEN) & (facts.token == 4), Rule("bigram", 4)),
    "random": (lambda facts: at_random(facts, 0.1), Rule(CONTEXT, NO_RULE)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_latent_is_told_by_its_rule(name: str) -> None:
    facts = random_facts(rows=400)
    fires, rule = PLANTED[name]
    found = kinds(code_of(fires(facts)), facts)
    assert found.latents.tolist() == [0]
    assert found.rule(0) == rule
    if rule.kind in RULES:
        assert found.f1[0, RULES.index(rule.kind)] == 1


def test_planted_latents_side_by_side_and_with_noise() -> None:
    """A third of the firings left out and as many put elsewhere: the F1 falls to about 2/3, the kinds stay."""
    facts = random_facts(rows=400)
    generator = torch.Generator().manual_seed(2)
    firing = []
    for fires, _ in PLANTED.values():
        clean = fires(facts)
        noise = torch.rand(len(clean), generator=generator)
        share = clean.double().mean()
        firing.append((clean & (noise < 2 / 3)) | (~clean & (noise < share / 3 / (1 - share))))
    found = kinds(code_of(*firing), facts)
    expected = [rule for _, rule in PLANTED.values()]
    certain = [place for place, rule in enumerate(expected) if rule.value not in (STATES.index("in brackets"),)]
    assert [found.rule(place).kind for place in certain] == [expected[place].kind for place in certain]
    token = RULES.index("token")
    assert found.f1[0, token].item() == pytest.approx(2 / 3, abs=0.05)


def meets(facts: TokenFacts, place: int, kind: str) -> list[int]:
    """The values of the rules of a kind that a token meets."""
    token, previous = int(facts.token[place]), int(facts.previous[place])
    if kind == "token":
        return [token]
    if kind == "class":
        return [int(facts.token_class[place])]
    if kind == "position":
        return [k for k in FIRST if facts.position[place] < k]
    if kind == "previous token":
        return [previous]
    if kind == "bigram":
        return [(previous + 1) * 2**32 + token]
    states = [f"at indentation {int(facts.indentation[place])}"]
    states += [f"in a {REGIONS[int(facts.region[place])]}"] + ["in brackets"] * int(facts.in_brackets[place])
    return [value for value, name in enumerate(STATES) if name.removesuffix(" or more") in states]


def f1_of(fires: set[int], rule: set[int]) -> float:
    both = len(fires & rule)
    if both == 0:
        return 0.0
    precision, recall = both / len(rule), both / len(fires)
    return 2 * precision * recall / (precision + recall)


def test_every_f1_is_that_of_plain_loops() -> None:
    facts = random_facts(rows=9, width=11)
    firing = torch.rand(len(facts.token), 8, generator=torch.Generator().manual_seed(3)) < torch.linspace(0.05, 0.6, 8)
    found = kinds(code_of(*firing.T), facts, min_firings=1)
    halves = [{place for place in range(99) if int(facts.row[place]) % 2 == half} for half in (0, 1)]
    assert found.latents.tolist() == list(range(8))
    for latent in range(8):
        fires = {place for place in range(99) if firing[place, latent]}
        for number, kind in enumerate(RULES):
            rules: dict[int, set[int]] = {}
            for place in range(99):
                for value in meets(facts, place, kind):
                    rules.setdefault(value, set()).add(place)
            fit = {value: f1_of(fires & halves[0], rule & halves[0]) for value, rule in sorted(rules.items())}
            best = max(fit.values())
            value = int(found.values[latent, number])
            if best == 0:
                assert value == NO_RULE and found.f1[latent, number] == 0
                continue
            assert value == next(value for value, f1 in fit.items() if f1 == pytest.approx(best, rel=1e-12))
            expected = f1_of(fires & halves[1], rules[value] & halves[1])
            assert found.f1[latent, number].item() == pytest.approx(expected, rel=1e-12)


def test_the_rule_is_chosen_on_even_rows_and_scored_on_odd_ones() -> None:
    facts = random_facts()
    even = facts.row % 2 == 0
    switches = torch.where(even, facts.token == 2, facts.token == 9)
    half_hearted = torch.where(even, facts.token == 2, (facts.token == 2) & (facts.position < WIDTH // 2))
    found = kinds(code_of(switches, half_hearted), facts)
    token = RULES.index("token")
    assert found.values[:, token].tolist() == [2, 2]
    assert found.f1[0, token] == 0
    assert found.rule(0).kind == CONTEXT
    odd = (facts.token == 2) & ~even
    hits = int((odd & (facts.position < WIDTH // 2)).sum())
    assert found.f1[1, token].item() == pytest.approx(2 * hits / (hits + int(odd.sum())))


def test_rare_firings_are_not_read_as_a_rule() -> None:
    """Where every bigram is new, the best one fits the rows it was chosen on and no others."""
    facts = random_facts()
    scattered = facts._replace(token=torch.randperm(len(facts.token), generator=torch.Generator().manual_seed(4)))
    found = kinds(code_of(at_random(facts, 0.01)), scattered, min_firings=10)
    assert found.rule(0) == Rule(CONTEXT, NO_RULE)
    assert found.f1[0, [RULES.index("token"), RULES.index("bigram")]].tolist() == [0, 0]


def test_of_equal_rules_the_simpler_kind_holds() -> None:
    facts = random_facts()
    own_class = facts._replace(token_class=torch.where(facts.token == 7, 9, 0))
    assert kinds(code_of(facts.token == 7), own_class).rule(0) == Rule("token", 7)
    # The first position of a row is also what has no token before it.
    assert kinds(code_of(facts.position == 0), facts).rule(0) == Rule("position", 1)
    later = facts._replace(position=facts.position + 100)
    assert kinds(code_of(facts.position == 0), later).rule(0) == Rule("previous token", NO_TOKEN)
    always_after = facts._replace(previous=torch.where(facts.token == 7, 1, 2))
    assert kinds(code_of(facts.token == 7), always_after).rule(0) == Rule("token", 7)


@pytest.mark.parametrize("share", [0.6, 0.9, 1.0])
def test_a_latent_that_fires_on_most_tokens_holds_no_rule(share: float) -> None:
    facts = random_facts(rows=3, width=600)
    mostly_shallow = facts._replace(indentation=facts.indentation // 3)
    found = kinds(code_of(at_random(facts, share)), mostly_shallow)
    assert found.f1[0, RULES.index("code state")] > 0.6
    assert found.rule(0).kind == CONTEXT


def test_threshold_and_min_firings_are_inclusive() -> None:
    facts = random_facts()
    fires = (facts.token == 7) & at_random(facts, 0.8)
    number = int(fires.sum())
    assert kinds(code_of(fires), facts, min_firings=number).latents.tolist() == [0]
    assert kinds(code_of(fires), facts, min_firings=number + 1).latents.tolist() == []
    f1 = kinds(code_of(fires), facts).f1[0, 0].item()
    assert 0.5 < f1 < 1
    assert kinds(code_of(fires), facts, threshold=f1).rule(0).kind == "token"
    assert kinds(code_of(fires), facts, threshold=f1 + 1e-9).rule(0).kind == CONTEXT


def test_latents_that_are_not_judged_are_left_out_and_the_others_keep_their_numbers() -> None:
    facts = random_facts()
    nothing = torch.zeros_like(facts.token).bool()
    one_half = (facts.row % 2 == 0) & (facts.token == 1)
    planted = facts.token == 7
    found = kinds(code_of(nothing, one_half, planted, nothing, planted & (facts.row < 1)), facts)
    assert found.latents.tolist() == [2]
    assert found.rule(0) == Rule("token", 7)
    assert len(kinds(code_of(nothing), facts).latents) == 0


def test_a_latent_that_meets_no_rule_of_a_kind_has_none_there() -> None:
    facts = random_facts()
    found = kinds(code_of((facts.token == 7) & (facts.position >= max(FIRST))), facts)
    position = RULES.index("position")
    assert found.values[0, position] == NO_RULE
    assert found.f1[0, position] == 0


def test_explicit_zeros_of_a_code_do_not_fire() -> None:
    facts = random_facts()
    code = code_of(facts.token == 7, facts.token == 8)
    silenced = SparseCode(code.support, code.values.where(code.support.indices == 0, 0.0))
    assert kinds(silenced, facts).latents.tolist() == [0]


def test_settings_out_of_range_are_errors() -> None:
    facts = random_facts()
    code = code_of(facts.token == 7)
    with pytest.raises(ValueError, match="min_firings must be at least 1, got 0"):
        kinds(code, facts, min_firings=0)
    for threshold in (0.0, 1.1):
        with pytest.raises(ValueError, match="threshold must be above 0 and at most 1"):
            kinds(code, facts, threshold=threshold)
    with pytest.raises(ValueError, match="has 2000 tokens, but the facts have 100"):
        kinds(code, random_facts(rows=2))
    with pytest.raises(ValueError, match="all in one half"):
        kinds(code, facts._replace(row=2 * facts.row))
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        kind_shares(judged("token"), resamples=0, seed=0)
    with pytest.raises(ValueError, match="at least one dictionary"):
        kind_shares(resamples=10, seed=0)


def judged(*names: str) -> Kinds:
    """Kinds with these names and nothing else of interest."""
    none = torch.zeros(len(names), len(RULES))
    kind = torch.tensor([KINDS.index(name) for name in names], dtype=torch.int64)
    return Kinds(torch.arange(len(names)), kind, none, none.long())


def test_shares_and_their_intervals_are_those_of_drawing_latents_again() -> None:
    names = ["token"] * 30 + ["bigram"] * 15 + [CONTEXT] * 5
    found = kind_shares(judged(*names[:20]), judged(*names[20:]), resamples=4000, seed=0)
    random = Random(0)
    draws = [random.choices(names, k=50) for _ in range(4000)]
    assert list(found) == list(KINDS)
    for kind in KINDS:
        assert found[kind]["share"] == names.count(kind) / 50
        shares = sorted(draw.count(kind) / 50 for draw in draws)
        assert found[kind]["low"] == pytest.approx(shares[100], abs=0.021)
        assert found[kind]["high"] == pytest.approx(shares[3899], abs=0.021)
    assert found["class"] == {"share": 0, "low": 0, "high": 0}
    assert found == kind_shares(judged(*names), resamples=4000, seed=0)
    assert found != kind_shares(judged(*names), resamples=4000, seed=1)


def test_shares_of_no_latent_are_none() -> None:
    assert kind_shares(judged(), resamples=10, seed=0)["token"] == {"share": None, "low": None, "high": None}


def test_rules_in_words() -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_file=str(EMBEDDED_FOLDER / "tokenizer.json"), bos_token="<|bos|>"
    )
    vocab = tokenizer.get_vocab()
    dot, space_a = vocab["."], vocab["\u0120a"]
    words = {
        Rule("token", space_a): "' a'",
        Rule("class", CLASSES.index("number")): "number token",
        Rule("position", 1): "in the first column of the row",
        Rule("position", 8): "in the first 8 columns of the row",
        Rule("previous token", dot): "after '.'",
        Rule("previous token", NO_TOKEN): "at the start of a document",
        Rule("code state", 0): "in a string",
        Rule("code state", 5): "at indentation 3 or more",
        Rule("bigram", (dot + 1) * 2**32 + space_a): "' a' after '.'",
        Rule("bigram", space_a): "' a' at the start of a document",
        Rule(CONTEXT, NO_RULE): "no rule on tokens",
    }
    assert {rule: describe(rule, tokenizer) for rule in words} == words
    with pytest.raises(ValueError, match="got 'trigram'"):
        describe(Rule("trigram", 0), tokenizer)
