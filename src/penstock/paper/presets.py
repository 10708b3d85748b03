"""Presets of the paper's experiments, and one for the embedded model, with the source of every number.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, version 2. "Appendix D" and "Tables 1-8" are the
paper's. An "author comment" is a reply under the paper's post on LessWrong. UNSTATED marks settings that the paper does
not state, OURS settings that no experiment of the paper has.
"""

from typing import Any

from penstock.paper.preset import OURS, UNSTATED, ArmPreset, Cited, Preset, SitePreset
from penstock.paper.tables import GEMMA_BASELINE, GEMMA_GATED, PYTHIA_BASELINE, PYTHIA_GATED, PublishedRun
from penstock.posthoc.refitting import RefitConfig
from penstock.studies import STUDIES
from penstock.studies.ablations import AblationsConfig
from penstock.studies.cost import CostConfig
from penstock.studies.pruning import PruningConfig
from penstock.studies.pursuit import PursuitConfig
from penstock.studies.refit import RefitStudyConfig
from penstock.studies.sensitivity import SensitivityConfig

APPENDIX_D = "Appendix D"
TABLES = "Tables 1-8"
LR_COMMENT = "author comment 5dYGHaTBAfhA5z83i"


def _published(arch: str, d_sae: Cited, lr: Cited, runs: tuple[PublishedRun, ...], where: str) -> ArmPreset:
    """An arm of the paper's tables."""
    return ArmPreset(
        arch=arch,
        d_sae=d_sae,
        lr=lr,
        coefs=Cited(tuple(sorted({run.coef for run in runs if run.coef is not None}, reverse=True)), where),
        target_l0s=Cited(tuple(sorted({run.l0 for run in runs})), f"the L0s there: {where}"),
        published=Cited(runs, where),
    )


def _unpublished(arch: str, d_sae: Cited, lr: Cited, target_l0s: Cited, why: str) -> ArmPreset:
    """An arm that is not in the paper's tables."""
    none = Cited((), why)
    return ArmPreset(arch=arch, d_sae=d_sae, lr=lr, coefs=none, target_l0s=target_l0s, published=none)


def _arms(gated: ArmPreset, compute_matched: ArmPreset) -> dict[str, ArmPreset]:
    """The two arms, and `width_matched`: the baseline with the Gated arm's width."""
    width_matched = _unpublished(
        "relu",
        Cited(gated.d_sae.value, f"{OURS}the Gated arm's"),
        Cited(compute_matched.lr.value, f"{OURS}as compute-matched: {compute_matched.lr.source}"),
        Cited(compute_matched.target_l0s.value, f"{OURS}as compute-matched: {compute_matched.target_l0s.source}"),
        f"{OURS}none; {TABLES} do not have this arm",
    )
    return {"gated": gated, "compute_matched": compute_matched, "width_matched": width_matched}


def _published_site(model: str, name: str, d_in: Cited, widths: tuple[int, int], baseline_lr: Cited) -> SitePreset:
    """A site in the paper's tables; `widths` are those of the Gated arm and of the baseline."""
    gated_runs, baseline_runs = PUBLISHED[model]
    why = f"{TABLES} and the caption of Fig 1; the prose of appendix D.1.1 has the widths of the arms swapped"
    in_gated, in_baseline = f"{TABLES}: {model}, Gated, {name}", f"{TABLES}: {model}, baseline, {name}"
    gated = _published("gated", Cited(widths[0], why), GATED_LR, gated_runs[name], in_gated)
    width = Cited(widths[1], why)
    if name in baseline_runs:
        baseline = _published("relu", width, baseline_lr, baseline_runs[name], in_baseline)
    else:
        target_l0s = Cited(gated.target_l0s.value, f"{OURS}the Gated arm's, as the baseline's were not read here")
        baseline = _unpublished("relu", width, baseline_lr, target_l0s, f"none was read: {in_baseline}")
    source = f"{APPENDIX_D}, its layers taken to be counted from 0"
    return SitePreset(name=name, source=source, d_in=d_in, arms=_arms(gated, baseline), studies=WITHOUT_TRAINING)


def _paper_settings(steps: int) -> dict[str, Any]:
    """The settings that the paper's three models share."""
    bricken = "Bricken et al. 2023, which appendix D mostly follows"
    warmup = f"{UNSTATED}1,000 steps, as many as after resampling; that there is a warm-up is in appendix D"
    return {
        "optim": {
            "batch_size": Cited(4096, APPENDIX_D),
            "beta2": Cited(0.999, f"{APPENDIX_D}; beta1 is 0, as in the recipe"),
            "warmup_share": Cited(1000 / steps, warmup),
            "decay_share": Cited(0.0, f"{UNSTATED}none, as appendix D mentions none"),
            "sparsity_warmup_share": Cited(
                0.0, f"{UNSTATED}none; author comment N6C2nFatJfeq9hrxM calls it a later improvement"
            ),
        },
        "resampling": {
            "lr_dip": Cited(0.1, APPENDIX_D),
            "lr_dip_steps": Cited(1000, APPENDIX_D),
            "inputs": Cited(819_200, bricken),
            "encoder_scale": Cited(0.2, bricken),
        },
        "eval": {"eval_tokens": Cited(2**20, f"{UNSTATED}2^20; appendix D says more than 1 million held-out tokens")},
        "recipe": Cited("paper", "sections 2.2 and 3.2, appendix D"),
        "steps": Cited(steps, APPENDIX_D),
        "quick_steps": Cited(10_000, f"{OURS}a short run"),
        "seeds": Cited((0,), f"{UNSTATED}one"),
        "study_settings": {},
        "quick_study_settings": {},
    }


def _paper_data(text: str, why: str, context: int, buffer: str) -> dict[str, Cited]:
    return {
        "text": Cited(text, f"{UNSTATED}{why}"),
        "packing": Cited("packed", f"{UNSTATED}documents joined, so that every row is full"),
        "context": Cited(context, APPENDIX_D),
        "buffer_tokens": Cited(1_000_000, buffer),
    }


EVERY_STUDY = tuple(STUDIES)
WITHOUT_TRAINING = Cited(
    ("shrinkage", "pruning", "cost", "dictionaries", "concepts"),
    f"{OURS}those that train nothing; the paper has its ablations, refits and pursuit on GELU-1L",
)

PUBLISHED = {"Gemma-7B": (GEMMA_GATED, GEMMA_BASELINE), "Pythia-2.8B": (PYTHIA_GATED, PYTHIA_BASELINE)}
"""The runs in the paper's tables by model: those of the Gated arm and of the baseline, each by site."""

GATED_LR = Cited(3e-4, f"{APPENDIX_D} and {LR_COMMENT}: all Gated runs")

GELU_LR = Cited(3e-4, f"{LR_COMMENT}: swept there")
GELU_WIDTH = f"{UNSTATED}the same as for most sites of Pythia-2.8B and Gemma-7B"
GELU_L0S = Cited((10.0, 20.0, 50.0, 100.0), f"{UNSTATED}the range that appendix A mentions")
GELU_TABLES = f"{UNSTATED}none; GELU-1L has no table"

PYTHIA_LR = Cited(1e-3, f"{APPENDIX_D} and {LR_COMMENT}: all Pythia baselines")

GEMMA_LR = {
    "attn_z": Cited(7.5e-4, f"{APPENDIX_D}: all attention baselines"),
    "mlp_out": Cited(1e-3, f"{APPENDIX_D}: a mix of 1e-3 and 7.5e-4; chosen: 1e-3 ({LR_COMMENT}: little difference)"),
}
GEMMA_LR["resid_post"] = GEMMA_LR["mlp_out"]

GEMMA_D_IN = {
    "attn_z": Cited(4096, "config.json of the model: 16 heads of 256; not confirmed in the paper"),
    "mlp_out": Cited(3072, "config.json of the model: hidden_size; not confirmed in the paper"),
}
GEMMA_D_IN["resid_post"] = GEMMA_D_IN["mlp_out"]

DEVIATIONS = (
    "Both arms use the same loss scale: errors are sums over d_in, and activations have unit mean squared norm. The "
    "paper divides errors by d_in. For the baselines of Pythia and Gemma it divides again by E|x| or its square, which "
    "is not confirmed. So its baseline lambdas cannot be converted, and baselines aim at the L0s in its tables.",
    "Gated arms use the paper's lambdas where it states them (Pythia-2.8B, Gemma-7B), multiplied by d_in and by the "
    "run's scale of activations. This assumes that the paper divides auxiliary errors by d_in, like the others.",
    "Adam's steps have the paper's length, but activations are scaled here. For biases that is 1 / scale times as "
    "long.",
    "Width-matched baselines are ours: the paper's tables have only compute-matched ones.",
    "Dead latents are resampled at 1/8, 1/4, 3/8 and 1/2 of the run if they have not fired for 1/16 of it; the paper "
    "does not state the steps. They get the direction x - b_dec, from as many of the 819,200 inputs as the buffer "
    "holds.",
    "Encoders start as transposed decoders, and biases and r_mag at 0; the paper does not state the initialisation.",
    "The learning rate starts with a linear warm-up from 0. Only after resampling does it follow the paper's cosine, "
    "from 0.1 times its value.",
    "BOS tokens are left out of training and evaluation.",
)

GELU_1L = Preset(
    name="gelu-1l",
    language_model={
        "model": Cited(
            "NeelNanda/GELU_1L512W_C4_Code",
            f"{APPENDIX_D} says GELU-1L; the name on the Hub is ours. Converted by penstock.language_models.gelu_1l",
        ),
        "dtype": Cited("float32", f"{UNSTATED}float32, as the model is small"),
    },
    num_layers=Cited(1, APPENDIX_D),
    model_parameters=Cited(53_097_984, "shapes of the checkpoint: d_model 512, 48,262 tokens, 1,024 positions"),
    data=_paper_data(
        "datasets:allenai/c4:en",
        "C4, the natural-language part of the model's training data",
        128,
        f"{UNSTATED}the same as for Pythia-2.8B",
    ),
    **_paper_settings(300_000),
    sites=(
        SitePreset(
            name="mlp_act.0",
            source=f"{APPENDIX_D}: MLP neurons after the nonlinearity",
            d_in=Cited(2048, "shapes of the checkpoint: d_mlp"),
            arms=_arms(
                _unpublished("gated", Cited(2**17, GELU_WIDTH), GATED_LR, GELU_L0S, GELU_TABLES),
                _unpublished("relu", Cited(3 * 2**16, GELU_WIDTH), GELU_LR, GELU_L0S, GELU_TABLES),
            ),
            studies=Cited(EVERY_STUDY, f"sections 4 and 5 and appendix A; {OURS}pruning, sensitivity, dictionaries"),
        ),
    ),
    deviations=(
        *DEVIATIONS,
        "The paper has no table for this model: the widths are those of its other models, the L0s are ours.",
        "The model is not in a Hugging Face format. Run `penstock convert-gelu-1l FOLDER OUT`, then give --model OUT.",
        f"The variant of GELU is {UNSTATED}the one in config.json, where gelu is the exact function, as in "
        "TransformerLens 3.5.1. The code that trained the model (neelnanda-io/solu_project at 2e76d17) uses the tanh "
        "approximation. To use that, write gelu_new in config.json.",
    ),
)

PYTHIA = Preset(
    name="pythia-2.8b",
    language_model={
        "model": Cited(
            "EleutherAI/pythia-2.8b",
            f"{APPENDIX_D} says Pythia-2.8B; {UNSTATED}the model trained on texts that were not deduplicated",
        ),
        "dtype": Cited("bfloat16", f"{UNSTATED}bfloat16; SAEs train in float32"),
    },
    num_layers=Cited(32, "config.json of the model"),
    model_parameters=Cited(2_775_208_960, "shapes of config.json of the model"),
    data=_paper_data(
        "datasets:monology/pile-uncopyrighted", "the Pile, which the model was trained on", 2048, APPENDIX_D
    ),
    **_paper_settings(400_000),
    sites=tuple(
        _published_site(
            "Pythia-2.8B",
            f"{kind}.{layer}",
            Cited(2560, "config.json of the model: hidden_size, and 32 heads of 80"),
            (2**15, 3 * 2**14) if kind == "resid_post" else (2**17, 3 * 2**16),
            PYTHIA_LR,
        )
        for kind in ("mlp_out", "attn_z", "resid_post")
        for layer in (4, 12, 16, 20, 28)
    ),
    deviations=(
        *DEVIATIONS,
        "All runs at a site have the same width. In the paper, a few at resid_post.16 have the larger width. Some at "
        "attn_z.16 have the smaller one: the Gated run with lambda 1e-3 had 32,768 latents.",
    ),
)

GEMMA = Preset(
    name="gemma-7b",
    language_model={
        "model": Cited("google/gemma-7b", f"{APPENDIX_D} says Gemma-7B, base; the name on the Hub is ours"),
        "dtype": Cited("bfloat16", f"{UNSTATED}bfloat16; SAEs train in float32"),
    },
    num_layers=Cited(28, "config.json of the model"),
    model_parameters=Cited(8_537_680_896, "shapes of config.json of the model"),
    data=_paper_data(
        "datasets:monology/pile-uncopyrighted",
        "public text, code and mathematics; the model's own training texts are not public",
        1024,
        f"{UNSTATED}the same as for Pythia-2.8B",
    ),
    **_paper_settings(300_000),
    sites=tuple(
        _published_site(
            "Gemma-7B",
            f"{kind}.{layer}",
            GEMMA_D_IN[kind],
            (2**17, 3 * 2**16),
            GEMMA_LR[kind],
        )
        for kind in ("mlp_out", "attn_z", "resid_post")
        for layer in (6, 13, 20, 27)
    ),
    deviations=(
        *DEVIATIONS,
        "Baselines at MLP and residual sites all have a learning rate of 1e-3, where the paper mixes 1e-3 and 7.5e-4.",
        "Baselines aim at the lowest and highest L0 of their range at resid_post.27, and at the Gated arm's L0s at "
        "attn_z.27, because no others were read from the tables.",
        "Unstable Gated repeats and badly trained baselines at resid_post.6, and runs with an impossible L0, are left "
        "out.",
    ),
)

_RULE = Cited(None, f"{OURS}the rule of docs/training.md")
_DEMO = f"{OURS}the same as in `make demo`"
_BUDGET = f"{OURS}as much as two cores do in an hour, all studies together"
_QUICK = f"{OURS}as much as two cores do in ten minutes, all studies together"
_EMBEDDED_L0S = Cited((4.0, 8.0, 16.0, 32.0), _DEMO)
_NO_TABLE = f"{OURS}none; the paper does not have this model"


def _embedded_site(name: str, studies: tuple[str, ...]) -> SitePreset:
    return SitePreset(
        name=name,
        source=f"{OURS}one of each kind that the paper has for Pythia-2.8B and Gemma-7B",
        d_in=Cited(192, "config.json of the model: hidden_size, and 6 heads of 32"),
        arms=_arms(
            _unpublished("gated", Cited(1024, _DEMO), _RULE, _EMBEDDED_L0S, _NO_TABLE),
            _unpublished("relu", Cited(1536, f"{OURS}1.5 times the Gated arm's"), _RULE, _EMBEDDED_L0S, _NO_TABLE),
        ),
        studies=Cited(studies, _BUDGET),
    )


EMBEDDED = Preset(
    name="embedded",
    language_model={"model": Cited("embedded", f"{OURS}the model in the package, so that no network is needed")},
    num_layers=Cited(4, "config.json of the model"),
    model_parameters=Cited(2_557_632, "shapes of config.json of the model"),
    data={
        "text": Cited("embedded", _DEMO),
        "context": Cited(256, f"{_DEMO}: the most that the model takes"),
        "cache_tokens": Cited(512_000, _DEMO),
        "model_batch_rows": Cited(8, _DEMO),
    },
    optim={"batch_size": Cited(512, _DEMO)},
    resampling={},
    eval={"eval_tokens": Cited(25_000, _BUDGET)},
    recipe=Cited("paper_clipped", f"{OURS}the best of docs/training.md for short runs"),
    steps=Cited(1500, _BUDGET),
    quick_steps=Cited(1000, f"{OURS}one pass over the cache"),
    seeds=Cited((0, 1), f"{OURS}two, so that what differs between seeds can be told from what differs between arms"),
    study_settings={
        "ablations": Cited(AblationsConfig(target_l0s=(8.0, 32.0)), _BUDGET),
        "pursuit": Cited(PursuitConfig(num_latents=(8, 32)), _BUDGET),
        "pruning": Cited(PruningConfig(quantiles=(0.5,), prices=(1.0,)), _BUDGET),
        "refit": Cited(RefitStudyConfig(refit=RefitConfig(steps=300, batch_size=2048)), _BUDGET),
        "sensitivity": Cited(SensitivityConfig(d_sae=(0.5, 2.0), warmup_share=(0.25, 4.0), target_l0=16.0), _BUDGET),
    },
    quick_study_settings={
        "ablations": Cited(
            AblationsConfig(
                target_l0s=(4.0, 32.0), ablations=("auxiliary_unfrozen", "no_r_mag", "untied", "no_auxiliary")
            ),
            _QUICK,
        ),
        "pursuit": Cited(PursuitConfig(num_latents=(8, 32)), _QUICK),
        "pruning": Cited(PruningConfig(quantiles=(), l0_shares=(0.5,), prices=(1.0,)), _QUICK),
        "refit": Cited(RefitStudyConfig(refit=RefitConfig(steps=100, batch_size=1024), fit_tokens=200_000), _QUICK),
        "sensitivity": Cited(
            SensitivityConfig(lr=(0.25, 4.0), sparsity_coef=(0.25, 4.0), d_sae=(0.5,), warmup_share=(4.0,)), _QUICK
        ),
        "cost": Cited(CostConfig(repeats=5), _QUICK),
    },
    sites=(
        _embedded_site("resid_post.2", EVERY_STUDY),
        _embedded_site("mlp_out.1", ("shrinkage", "dictionaries")),
        _embedded_site("attn_z.2", ("shrinkage", "dictionaries")),
    ),
    deviations=(
        "The experiments are the paper's, but model, text, sites, widths, L0s, learning rates and lengths are ours. "
        "1,500 steps with batches of 512 use 768,000 activations, where the paper uses more than a billion.",
        "Gradients are clipped and dead latents are not resampled (see docs/training.md).",
        "Training passes over 512,000 activations 1.5 times; in the paper no activation is used twice.",
        "Studies that train or measure many SAEs are made only at resid_post.2.",
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (GELU_1L, PYTHIA, GEMMA, EMBEDDED)}
"""The presets by name."""
