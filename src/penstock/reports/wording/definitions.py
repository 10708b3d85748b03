"""Definitions of all metrics for the report: formula, unit, range and direction."""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower is better", "higher is better", "1 is unbiased", "neither is better"]


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One metric, as the report explains it."""

    key: str
    """Key in a record, a comparison or a training-log row."""
    label: str
    """Short name for axes and column heads."""
    formula: str
    """Plain text, with E[.] the mean over all counted tokens."""
    unit: str
    """Unit, or "none" for a pure number."""
    bounds: str
    """Possible values."""
    direction: Direction
    meaning: str
    """One or two sentences on how to read the metric, and when it misleads."""


NOTATION = (
    "x is an activation, x̂ its reconstruction, f_j the latents, d_j row j of the decoder, E[·] the mean "
    "over all counted tokens of the held-out texts. BOS and padding never count. Sums are taken over all "
    "tokens first, in double precision, and divided once: no metric is a mean of batch means. Spliced "
    "means that the language model runs with x replaced by x̂ at every counted position of the site; the "
    "other positions keep x in every run, ablations included. A prediction counts when both its position "
    "and its target do. Intervals are 95% bootstrap intervals over sequences: they cover the choice of "
    "evaluation texts, not the luck of a training seed."
)

METRICS: tuple[Definition, ...] = (
    Definition(
        key="l0",
        label="L0",
        formula="E[ #{ j : f_j(x) ≠ 0 } ]",
        unit="latents per token",
        bounds="0 to d_sae",
        direction="lower is better",
        meaning="Mean number of latents that fire on a token. A Gated latent whose gate is open but whose "
        "magnitude is zero does not count.",
    ),
    Definition(
        key="l0_median",
        label="L0 median",
        formula="median over tokens of #{ j : f_j(x) ≠ 0 }",
        unit="latents per token",
        bounds="0 to d_sae",
        direction="lower is better",
        meaning="Far below the mean when a few tokens use very many latents.",
    ),
    Definition(
        key="l0_p5",
        label="L0 5th pct.",
        formula="5th percentile over tokens of #{ j : f_j(x) ≠ 0 }",
        unit="latents per token",
        bounds="0 to d_sae",
        direction="neither is better",
        meaning="The tokens with the fewest firing latents.",
    ),
    Definition(
        key="l0_p95",
        label="L0 95th pct.",
        formula="95th percentile over tokens of #{ j : f_j(x) ≠ 0 }",
        unit="latents per token",
        bounds="0 to d_sae",
        direction="neither is better",
        meaning="The tokens with the most firing latents.",
    ),
    Definition(
        key="loss_recovered",
        label="Loss recovered",
        formula="1 − (CE_spliced − CE_clean) / (CE_zero − CE_clean)",
        unit="none",
        bounds="at most about 1; 1 loses nothing, 0 is as bad as zero ablation, below 0 is worse; missing "
        "if zero ablation costs nothing",
        direction="higher is better",
        meaning="Share of the damage of zero ablation that the SAE undoes (arXiv 2404.16014, "
        "equation 5). Zeroing a residual stream destroys a model, so values above 0.9 are easy to reach there: "
        "read delta CE first.",
    ),
    Definition(
        key="loss_recovered_mean",
        label="Loss recovered (mean)",
        formula="1 − (CE_spliced − CE_clean) / (CE_mean − CE_clean)",
        unit="none",
        bounds="at most about 1; missing if mean ablation costs the model nothing",
        direction="higher is better",
        meaning="The same with mean ablation, which is stricter and fairer at most sites.",
    ),
    Definition(
        key="delta_ce",
        label="Delta CE",
        formula="CE_spliced − CE_clean",
        unit="nats per token",
        bounds="about 0 upwards",
        direction="lower is better",
        meaning="How much worse the language model predicts when it reads the reconstruction. The most "
        "comparable number here, because it has no normaliser.",
    ),
    Definition(
        key="kl",
        label="KL",
        formula="E[ Σ_v p(v) (log p(v) − log q(v)) ], p clean, q spliced",
        unit="nats per token",
        bounds="0 upwards",
        direction="lower is better",
        meaning="How far the model's predictions move, regardless of the actual next token.",
    ),
    Definition(
        key="ce_clean",
        label="CE clean",
        formula="E[ −log p(next token) ]",
        unit="nats per token",
        bounds="0 upwards",
        direction="neither is better",
        meaning="Loss of the untouched language model on the evaluation texts.",
    ),
    Definition(
        key="ce_spliced",
        label="CE spliced",
        formula="CE_clean with x replaced by x̂",
        unit="nats per token",
        bounds="0 upwards",
        direction="lower is better",
        meaning="Loss of the language model when it reads the reconstruction.",
    ),
    Definition(
        key="ce_zero",
        label="CE zero abl.",
        formula="CE_clean with x replaced by 0",
        unit="nats per token",
        bounds="0 upwards",
        direction="neither is better",
        meaning="Normaliser of loss recovered; a property of the site, not of the SAE.",
    ),
    Definition(
        key="ce_mean",
        label="CE mean abl.",
        formula="CE_clean with x replaced by E[x]",
        unit="nats per token",
        bounds="0 upwards",
        direction="neither is better",
        meaning="Normaliser of loss recovered against mean ablation; one mean over all evaluation tokens.",
    ),
    Definition(
        key="fvu",
        label="FVU",
        formula="E[ ‖x − x̂‖² ] / E[ ‖x − E[x]‖² ]",
        unit="none",
        bounds="0 upwards; 1 is no better than the mean activation",
        direction="lower is better",
        meaning="Fraction of variance unexplained, about one global mean; 1 − FVU is the explained "
        "variance. The residual is not centred, so a constant error counts, too.",
    ),
    Definition(
        key="mse",
        label="MSE",
        formula="E[ ‖x − x̂‖² ], summed over d_in",
        unit="squared activation units per token",
        bounds="0 upwards",
        direction="lower is better",
        meaning="Comparable only between SAEs of one site: it scales with the activations and with d_in.",
    ),
    Definition(
        key="cosine",
        label="Cosine",
        formula="E[ x·x̂ / (‖x‖ ‖x̂‖) ]",
        unit="none",
        bounds="−1 to 1",
        direction="higher is better",
        meaning="Compares directions only, so it does not see shrinkage.",
    ),
    Definition(
        key="reconstruction_bias",
        label="γ",
        formula="γ = E[ ‖x̂‖² ] / E[ x·x̂ ]",
        unit="none",
        bounds="0 upwards in practice",
        direction="1 is unbiased",
        meaning="Relative reconstruction bias (arXiv 2404.16014, equations 9 and 10): 1/γ is the factor "
        "that rescales x̂ best. Below 1 the SAE shrinks its reconstructions, above 1 it overshoots.",
    ),
    Definition(
        key="l1",
        label="L1",
        formula="E[ Σ_j |f_j(x)| ‖d_j‖ ]",
        unit="activation units per token",
        bounds="0 upwards",
        direction="neither is better",
        meaning="Size of the code, weighted by the decoder's norms so that rescaling f and d changes nothing.",
    ),
    Definition(
        key="frac_alive",
        label="Alive",
        formula="#{ j : f_j fired at least once } / d_sae",
        unit="share of latents",
        bounds="0 to 1",
        direction="higher is better",
        meaning="Counted on the evaluated tokens: a latent rarer than about 3 in tokens_evaluated may be missed.",
    ),
    Definition(
        key="frac_dense",
        label="Dense",
        formula="#{ j : f_j fires on more than 10% of tokens } / d_sae",
        unit="share of latents",
        bounds="0 to 1",
        direction="lower is better",
        meaning="Latents that fire very often are seldom interpretable.",
    ),
)
"""Metrics of a record, in the order the report shows them."""

OTHERS: tuple[Definition, ...] = (
    Definition(
        key="ratio",
        label="L0 ratio",
        formula="L0 of the arm / L0 of its baseline, at equal quality",
        unit="none",
        bounds="above 0; below 1 the arm needs fewer firing latents",
        direction="lower is better",
        meaning="Both arms' curves are interpolated to the same values of the quality metric, only where "
        "both were measured; nothing is extrapolated. If the interval contains 1, no difference is "
        "shown.",
    ),
    Definition(
        key="density_histogram",
        label="Density",
        formula="log10( tokens on which f_j ≠ 0 / tokens evaluated ), for each latent j",
        unit="log10 share of tokens",
        bounds="−∞ (never fired) to 0 (fires on every token)",
        direction="neither is better",
        meaning="Latents that never fired cannot be drawn on the axis; their number is given next to it.",
    ),
    Definition(
        key="reconstruction",
        label="Reconstruction loss",
        formula="mean over a training batch of ‖x − x̂‖², activations scaled as in training",
        unit="scaled squared units per token",
        bounds="0 upwards",
        direction="lower is better",
        meaning="From the training log. A flat end means converged; still falling means undertrained.",
    ),
    Definition(
        key="dead_share",
        label="Dead share",
        formula="#{ j : f_j has not fired within the training window } / d_sae",
        unit="share of latents",
        bounds="0 to 1",
        direction="lower is better",
        meaning="From the training log. Drops show where dead latents were resampled.",
    ),
    Definition(
        key="sparsity_coef",
        label="Sparsity coefficient",
        formula="λ in loss = reconstruction + λ · sparsity penalty (+ auxiliary term)",
        unit="none",
        bounds="0 upwards",
        direction="neither is better",
        meaning="If the run has a target L0, λ is steered until the last step, and its mean over the last tenth is "
        "recorded. Not comparable between architectures.",
    ),
)
"""Terms of the report that are not metrics of a record."""

LABELS = {definition.key: definition.label for definition in (*METRICS, *OTHERS)}
