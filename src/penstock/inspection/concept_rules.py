"""Kinds of concept that the latents of a dictionary hold, by token-level rules that anyone can check.

For each kind of rule (this token, this class of token, ...) the rule that agrees best with a latent's firing is chosen
on the even rows and scored on the odd rows. Scoring on the same rows would be biased, because among thousands of tokens
and bigrams some rule always fits. Agreement is the F1 score: the harmonic mean of precision and recall of "the latent
fires".
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from penstock.evaluation.statistics import interval
from penstock.inspection.token_facts import CLASSES, DEEPEST, NO_TOKEN, REGIONS, PerToken, TokenFacts, token_bytes
from penstock.sparse import SparseCode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RULES = ("token", "class", "position", "previous token", "code state", "bigram")
"""Kinds of rule, simplest first: about the token, its position, what came before it, or both."""

CONTEXT = "context-dependent"
"""The kind of a latent that no rule describes."""

KINDS = (*RULES, CONTEXT)

FIRST = (1, 2, 4, 8, 16, 32)
"""A position rule is "one of the first k columns of the row", for one of these k; a BOS takes the first column."""

STATES = (
    *(f"in a {region}" for region in REGIONS[1:]),
    *(f"at indentation {level}{' or more' if level == DEEPEST else ''}" for level in range(DEEPEST + 1)),
    "in brackets",
)
"""The rules on the state of Python's text; a token may be in several."""

NO_RULE = -2
"""Value that stands for "no rule"."""

_TOKENS = 2**32
"""A number larger than any vocabulary; a bigram's value is (previous token + 1) * _TOKENS + token."""

Numbers = Int[Tensor, " some"]
PerJudged = Float[Tensor, " some"]


class Rule(NamedTuple):
    """A rule that each token either meets or does not meet."""

    kind: str
    """One of KINDS."""
    value: int
    """A token's id, a class, a k of FIRST, a state, or a bigram's value; NO_RULE if context-dependent."""


class Kinds(NamedTuple):
    """The kind of each latent of one dictionary that fires often enough to be judged."""

    latents: Numbers
    """Latents that were judged, ascending; the other tensors have the same order."""
    kind: Numbers
    """Index into KINDS."""
    f1: Float[Tensor, "some rules"]
    """F1 on the odd rows of the best rule of each kind of RULES, float64."""
    values: Int[Tensor, "some rules"]
    """Value of that best rule; NO_RULE if the latent met no rule of the kind on the even rows."""

    def rule(self, place: int) -> Rule:
        """Return the rule behind the kind of `latents[place]`; its F1 is `f1[place, kind[place]]`."""
        kind = int(self.kind[place])
        return Rule(KINDS[kind], int(self.values[place, kind]) if kind < len(RULES) else NO_RULE)


def kinds(code: SparseCode, facts: TokenFacts, *, min_firings: int = 20, threshold: float = 0.5) -> Kinds:
    """Judge every latent that fires on at least `min_firings` tokens, and in both halves of the rows.

    A latent's kind is that of the rule with the largest F1 (the first in RULES among ties), if this F1 is at least
    `threshold` and above the F1 of the rule "always". The comparison with "always" rejects rules that merely cover most
    tokens, for latents that fire on most tokens at random. All other latents are context-dependent.

    Args:
        code: Code of the positions that count, in row order (`x = acts[rows.mask]`).
        facts: Facts about the same positions.
        min_firings: Fewest firings of a latent to be judged, at least 1.
        threshold: Smallest F1 of a rule that describes a latent, above 0 and at most 1.

    Raises:
        ValueError: The code and the facts have different numbers of tokens, the tokens are all in even or all in
            odd rows, or a setting is out of range.
    """
    _check(code, facts, min_firings, threshold)
    fires = code.nonzero().support
    tokens, owners = fires.tokens.cpu(), fires.indices.long().cpu()
    odd = facts.row % 2 == 1
    on_odd = odd[tokens]
    firings = torch.stack([torch.bincount(owners[half], minlength=fires.d_sae) for half in (~on_odd, on_odd)])
    latents = ((firings.sum(dim=0) >= min_firings) & (firings > 0).all(dim=0)).nonzero().flatten()

    place = torch.full((fires.d_sae,), -1, device="cpu").index_put(
        (latents,), torch.arange(len(latents), device="cpu")
    )[owners]
    chosen, scored = (
        _Half(half, tokens[pairs], place[pairs], firings[i, latents].double())
        for i, (half, pairs) in enumerate([(~odd, ~on_odd & (place >= 0)), (odd, on_odd & (place >= 0))])
    )
    found = [_best_of_kind(columns, chosen, scored) for columns in _columns(facts)]
    values, f1 = (torch.stack(each, dim=1) for each in zip(*found, strict=True))
    best, kind = f1.max(dim=1)
    always = 2 * scored.firings / (scored.firings + odd.sum())
    kind[(best < threshold) | (best <= always)] = len(RULES)
    return Kinds(latents, kind, f1, values)


def kind_shares(*judged: Kinds, resamples: int, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the share of each kind among the judged latents, with its 95% bootstrap interval.

    The bootstrap draws latents, pooled over the given dictionaries (e.g. the seeds of an arm). It covers the choice of
    latents, but not the choice of tokens or the spread between seeds. A kind that no latent has gets the interval 0
    to 0.

    Args:
        judged: Results of `kinds`, at least one.
        resamples: Number of bootstrap resamples, at least 1.
        seed: Seed of the resamples.

    Returns:
        `share`, `low` and `high` for each of KINDS, all None if no latent was judged.

    Raises:
        ValueError: `resamples` is less than 1, or there is no dictionary.
    """
    if not judged:
        raise ValueError("There are no kinds to take shares of. Give the kinds of at least one dictionary.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    counts = torch.stack([torch.bincount(one.kind, minlength=len(KINDS)) for one in judged]).sum(dim=0)
    total = int(counts.sum())
    if total == 0:
        return {name: {"share": None, "low": None, "high": None} for name in KINDS}
    shares = counts.double() / total
    # The numbers of latents of each kind in a resample are multinomial, so latents need not be drawn one by one.
    drawn = np.random.default_rng(seed).multinomial(total, shares.numpy(), size=resamples) / total
    intervals = [interval(values) or (None, None) for values in torch.from_numpy(drawn).T]
    return {
        name: {"share": share, "low": low, "high": high}
        for name, share, (low, high) in zip(KINDS, shares.tolist(), intervals, strict=True)
    }


def describe(rule: Rule, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the rule in words, with its tokens in quotes.

    Raises:
        ValueError: The kind is not one of KINDS, or the tokenizer's bytes cannot be read (see `token_bytes`).
    """

    def quoted(token: int) -> str:
        return repr(token_bytes([token], tokenizer)[0].decode(errors="replace"))

    def after(token: int) -> str:
        return "at the start of a document" if token == NO_TOKEN else f"after {quoted(token)}"

    kind, value = rule
    if kind == "token":
        return quoted(value)
    if kind == "class":
        return f"{CLASSES[value]} token"
    if kind == "position":
        return f"in the first {value} columns of the row" if value > 1 else "in the first column of the row"
    if kind == "previous token":
        return after(value)
    if kind == "code state":
        return STATES[value]
    if kind == "bigram":
        return f"{quoted(value % _TOKENS)} {after(value // _TOKENS - 1)}"
    if kind == CONTEXT:
        return "no rule on tokens"
    raise ValueError(f"The kind of a rule must be one of {', '.join(KINDS)}; got {kind!r}.")


class _Half(NamedTuple):
    """The firings of the judged latents in half of the rows."""

    members: Bool[Tensor, " tokens"]
    """Tokens in this half."""
    tokens: Int[Tensor, " pairs"]
    places: Int[Tensor, " pairs"]
    """Index of each firing's latent among the judged latents."""
    firings: PerJudged
    """Tokens of the half on which each latent fires."""


def _check(code: SparseCode, facts: TokenFacts, min_firings: int, threshold: float) -> None:
    if min_firings < 1:
        raise ValueError(f"min_firings must be at least 1, got {min_firings}.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1 (an F1), got {threshold}.")
    if code.support.batch != len(facts.token):
        raise ValueError(
            f"The code has {code.support.batch} tokens, but the facts have {len(facts.token)}. Encode the "
            "activations at the positions that count: acts[rows.mask]."
        )
    if len((facts.row % 2).unique()) < 2:
        raise ValueError(
            "Rules are chosen on the even rows and scored on the odd ones, but the tokens are all in one half. Give "
            "more rows."
        )


def _columns(facts: TokenFacts) -> list[list[PerToken]]:
    """Return the rules of each kind of RULES as columns: the value of the rule that each token meets, or NO_RULE.

    Rules that one token can meet at the same time are in different columns; no two columns of a kind share a value.
    """
    first_level = STATES.index("at indentation 0")
    in_region = (facts.region - 1).where(facts.region > 0, NO_RULE)
    in_brackets = torch.full_like(facts.token, STATES.index("in brackets")).where(facts.in_brackets > 0, NO_RULE)
    return [
        [facts.token],
        [facts.token_class],
        [torch.full_like(facts.token, k).where(facts.position < k, NO_RULE) for k in FIRST],
        [facts.previous],
        [in_region, facts.indentation + first_level, in_brackets],
        [(facts.previous + 1) * _TOKENS + facts.token],
    ]


def _best_of_kind(columns: Sequence[PerToken], chosen: _Half, scored: _Half) -> tuple[Numbers, PerJudged]:
    """Return for each latent the rule of any column with the largest F1 on `chosen`, and its F1 on `scored`."""
    values, fit, f1 = (
        torch.stack(each) for each in zip(*(_best_rule(column, chosen, scored) for column in columns), strict=True)
    )
    best = fit.argmax(dim=0, keepdim=True)
    return values.gather(0, best)[0], f1.gather(0, best)[0]


def _best_rule(column: PerToken, chosen: _Half, scored: _Half) -> tuple[Numbers, PerJudged, PerJudged]:
    """Return for each latent the value with the largest F1 on `chosen`, and its F1 on both halves.

    In a tie the smallest value wins. Only pairs of latent and value that occur are counted.
    """
    values, value_of = column.unique(return_inverse=True)
    latents = len(chosen.firings)
    pairs = chosen.places * len(values) + value_of.index_select(0, chosen.tokens)
    keys, together = _occurring(pairs, latents * len(values))
    is_rule = values[keys % len(values)] != NO_RULE
    keys, together = keys[is_rule], together[is_rule]
    owner, value = keys // len(values), keys % len(values)
    covered = torch.bincount(value_of[chosen.members], minlength=len(values))
    f1 = 2 * together.double() / (chosen.firings[owner] + covered[value])
    fit = f1.new_zeros(latents).scatter_reduce(0, owner, f1, "amax")
    # A latent without a rule gets the value after the last one, which no token has.
    is_best = f1 == fit[owner]
    best = value.new_full((latents,), len(values)).scatter_reduce(0, owner[is_best], value[is_best], "amin")

    agree = value_of.index_select(0, scored.tokens) == best.index_select(0, scored.places)
    together = torch.bincount(scored.places[agree], minlength=latents)
    covered = torch.bincount(value_of[scored.members], minlength=len(values) + 1)
    f1 = 2 * together.double() / (scored.firings + covered[best])
    return torch.cat([values, values.new_tensor([NO_RULE])])[best], fit, f1


def _occurring(keys: Int[Tensor, " pairs"], number: int) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " distinct"]]:
    """Return the distinct keys, ascending, and their counts; all keys are below `number`."""
    # Counting in a table is faster than sorting, but the table must not be larger than the list of keys.
    if number <= len(keys):
        counts = torch.bincount(keys, minlength=number)
        found = counts.nonzero().flatten()
        return found, counts[found]
    return keys.unique(return_counts=True)
