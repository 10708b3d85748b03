"""Runs from the paper's tables. Not all of them were copied; comments say which are missing.

Source: Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, version 2, Tables 1-8.
"""

from typing import NamedTuple


class PublishedRun(NamedTuple):
    """A run in the paper's tables. Numbers that were not copied are None; of a range, the middle is given."""

    coef: float | None
    """The paper's lambda."""
    lr: float | None
    """The learning rate, if it differs between the runs of a site."""
    l0: float
    loss_recovered: float | None = None
    """Loss recovered in percent."""
    gamma: float | None = None
    alive: float | None = None
    """The share of latents that fire, in percent."""


def _read(table: str) -> dict[str, tuple[PublishedRun, ...]]:
    """Runs by site, parsed from lines `SITE | LAMBDA (LR): L0 / loss recovered / gamma / alive; ...`.

    Everything except the L0 may be missing.
    """
    runs: dict[str, tuple[PublishedRun, ...]] = {}
    for line in table.strip().splitlines():
        site, _, entries = line.partition(" | ")
        runs[site] = runs.get(site, ()) + tuple(_run(entry) for entry in entries.split("; "))
    return runs


def _run(entry: str) -> PublishedRun:
    settings, _, results = entry.rpartition(": ")
    coef, _, lr = settings.rstrip(")").partition(" (")
    return PublishedRun(
        float(coef) if coef else None, float(lr) if lr else None, *(_middle(result) for result in results.split("/"))
    )


def _middle(result: str) -> float:
    ends = [float(end) for end in result.split("-")]
    return sum(ends) / len(ends)


# 131,072 latents. At MLP 20, 99.9 to 100% are alive, at MLP 27, 3.5 to 6%. Left out: repeats of Resid 6 with lambdas of
# 8e-6 to 4e-5, which are unstable (gamma up to 2.56).
GEMMA_GATED = _read("""
resid_post.6 | 1.2e-3: 2.2/95.55/1.006/94; 1e-3: 3.0/96.67/1.006/96; 8e-4: 4.3/97.83/1.003/97.5
resid_post.6 | 6e-4: 7.0/98.76/0.996/98; 4e-4: 14.3/99.35/0.996/99; 2e-4: 45.9/99.77/0.999/99.5
resid_post.6 | 1e-4: 131.8/99.94/1.005/99.5; 8e-5: 153.2/99.93/0.984/98; 6e-5: 215.7/99.93/0.982/94
resid_post.13 | 8e-4: 5.4/98.3/1.008; 5e-4: 13.1/99.25/0.998; 3e-4: 31.8/99.62/0.992; 2e-4: 62.6/99.76/0.993
resid_post.13 | 1e-4: 146.1/99.87/1.056/67
resid_post.20 | 1e-3: 8.2/96.15/1.004; 9e-4: 10/96.7/1.003; 8e-4: 12.3/97.14/0.997/97.5; 7e-4: 15.6/97.7/0.997
resid_post.20 | 5e-4: 28.0-29.3/98.53-98.62/0.997-1.016; 3e-4: 67.3/99.3/1.013; 2e-4: 123.4/99.58/1.01
resid_post.20 | 1e-4: 212.1/99.65/1.04/55
resid_post.27 | 3e-3: 17.3/81.66/1.001/29; 2e-3: 25.9/85.26/0.999/32; 1e-3: 54.4/90.26/1.008/34
mlp_out.6 | 4e-4: 4.0/73.71/1.009; 1e-4: 45.2/89.13/0.998; 7e-5: 106/90.67/1.0
mlp_out.13 | 9e-5: 36/76.36/1.002; 8e-5: 48.9/78.71; 7e-5: 67-70/81.2-82.2; 5e-5: 196.4/85.54; 3e-5: 766.5/93.04
mlp_out.20 | 1.9e-4: 24.4/87.81/1.004/99.9; 1.6e-4: 32.7/89.16; 1.5e-4: 36.4/89.63; 1.4e-4: 40.8/89.73
mlp_out.20 | 1.3e-4: 46.6/90.3; 1.2e-4: 53.5/90.99; 1e-4: 74.9/91.42/0.999; 9e-5: 91.2/92.01; 8e-5: 111.3/93.3/1.0
mlp_out.27 | 1.2e-3: 20.3/94.14/1.003/5.8; 1e-3: 23.1/96.01; 8e-4: 27.3/96.47; 3e-4: 59.3/99.07/1.002/3.9
mlp_out.27 | 2e-4: 80.9/98.19; 1.5e-4: 108.5/98.87
attn_z.6 | 7e-4: 8.9/82.28/1.015; 5e-4: 16.4/85.54; 3e-4: 38.7/88.69
attn_z.13 | 1.2e-3: 2.9/46.05/1.042; 6e-4: 13.2/76.64; 4e-4: 28.1/63.78; 2e-4: 95.1/82.86; 4e-5: 1079.5/93.95
attn_z.20 | 1.2e-3: 2.1/64.17/1.038; 6e-4: 9/80.22; 5.5e-4: 10.1/84.01; 4.5e-4: 14.8/85.85; 4e-4: 18.7/86.55
attn_z.20 | 3.5e-4: 22.8/88.2/1.009/94; 2.5e-4: 39.7/90.97/1.009/96; 2e-4: 55.2/92.72; 1.5e-4: 89.1/94.39
attn_z.20 | 1e-4: 178/94.71
attn_z.27 | 2e-3: 6.6/100.37; 1e-3: 16.5/105.72; 7e-4: 26.2/104.26
""")

# 196,608 latents. Left out: further runs at Resid 6 (gamma 1.1 to 1.6, 5 to 24% alive), and runs with a negative L0. At
# Resid 27 only the lowest and highest L0 were copied (39 to 62% loss recovered, 1 to 3% alive).
GEMMA_BASELINE = _read("""
resid_post.6 | 3e-5 (1e-3): 18.1/95.28/0.982/17; 3e-5 (7.5e-4): 25.4/97.9/0.976/39; 2e-5: 29.8/96.65/1.261/14
resid_post.6 | 1e-5: 57.3/97.36/1.03/12
resid_post.13 | 9e-5: 14.3/96.77/0.806/98; 8e-5: 17.5/97.66/0.824/99; 5e-5 (1e-3): 29.5/98.71/0.867/65
resid_post.13 | 3e-5: 39.2/98.26/0.936/26; 2e-5: 56.6/98.49/0.976/16; 1e-5: 101.3/97.83/1.018/4.6
resid_post.20 | 1.2e-4: 10.4/91.87/0.773/93; 1e-4: 13.8/93.68/0.797/97; 9e-5: 16/94.48/0.81/99
resid_post.20 | 7e-5: 21.3/95.73/0.824/99.6; 5e-5: 27.8/97.15/0.879/88.4; 4e-5: 46.4/97.95/0.874/99.9
resid_post.20 | 3e-5: 39.1/96.43/1.019/36; 1e-5: 124.8/97.69/0.997/12
resid_post.27 | 27.6; 88.2
mlp_out.6 | 1e-4: 6.3/67.78/0.794/82; 7e-5: 12/74.63/0.82/95; 5e-5: 17.1/75.36/0.864/68
mlp_out.13 | 8e-5: 11.3/50.99/0.848; 5e-5: 29.4/61.19/0.863; 3e-5: 80.8/71.28/0.901; 2e-5: 160.7/72.08/0.894
mlp_out.13 | 1e-5: 610/77.67/0.858
mlp_out.20 | 7e-5: 15.8/79.11/0.852/97; 5e-5: 24.5/82.67/0.869; 4e-5: 38.3/85.18/0.889
mlp_out.20 | 3e-5: 56.8/87.23/0.894/96.9; 2e-5: 75.6/85.63/0.899/66; 1e-5: 321.1/90.3/0.911/57
mlp_out.27 | 10.2/86.28; 20.5/95.05/1.002
attn_z.6 | 7e-5: 15.4/69.89/0.72; 5e-5: 26.4/78.08/0.777; 3e-5: 54.6/85.42/0.846
attn_z.13 | 22.6/60.79/0.721; 36.5/65.45/0.786; 68.8/81.03/0.804
attn_z.20 | 9e-5: 10.8/68.98/0.715; 8e-5: 12.3/72.48; 7e-5: 15.9/75.83; 6e-5: 18.7/78.38; 5e-5: 25.1/82.96/0.786
attn_z.20 | 4e-5: 32.6/85.95; 3e-5: 50.3/89.52/0.841/96.5; 2e-5: 97.3/92.52/0.878; 1.5e-5: 148.6/95.01
attn_z.20 | 1e-5: 329.7/96.57/0.895
""")

# 131,072 latents, but 32,768 on the residual stream. Gamma of all these runs is 0.985 to 1.012.
PYTHIA_GATED = _read("""
attn_z.4 | 8e-4: 24.7/90.94/1.007; 6e-4: 38.2/92.85; 4e-4: 69.8/94.82
attn_z.12 | 1e-3: 27.1/73.09/0.987; 8e-4: 40.5/77.52; 6e-4: 64.5/82.04
attn_z.16 | 1e-3: 17.2/79.67/0.988; 8e-4: 25/83.57; 6e-4: 39.1/87.21; 4e-4: 77.2/90.56
attn_z.20 | 8e-4: 24/93.05; 6e-4: 36.5/94.34; 4e-4: 71.2/96.25
attn_z.28 | 1e-3: 17.7/68.35; 8e-4: 27.8/73.39; 6e-4: 51.2/78.11
mlp_out.4 | 8e-4: 15.8/87.13; 6e-4: 28.6/89.28; 4e-4: 66.5/92.74
mlp_out.12 | 2e-3: 8.2/72.1; 1e-3: 35/81.33; 8e-4: 55.7/84.15
mlp_out.16 | 1.6e-3: 12.4/70.76; 1.4e-3: 16.1/72.62; 1.2e-3: 21.9/75.12; 9e-4: 38.3/78.41; 8e-4: 51/80.32
mlp_out.16 | 7e-4: 70.1/82.09
mlp_out.20 | 1.2e-3: 22.1/92.53; 1e-3: 30.9/93.27; 8e-4: 51/94.28
mlp_out.28 | 1.5e-3: 21.3/73.3; 1e-3: 47.7/79.96; 8e-4: 82.1/83.68
resid_post.4 | 2e-3: 16.2/98.83; 1e-3: 49/99.37; 8e-4: 70.7/99.5
resid_post.12 | 4e-3: 16.2/95.92; 2e-3: 52.8/98.2; 1.6e-3: 77.1/98.61
resid_post.16 | 6e-3: 12.5/94.29; 3e-3: 37.5/97.46; 2e-3: 71.5/98.33
resid_post.20 | 7.5e-3: 15.4/91.68; 4e-3: 38.7/95.09; 3e-3: 58.4/96.05
resid_post.28 | 7.5e-3: 25/96.54; 5e-3: 46.6/97.58; 4e-3: 61.2/97.9
""")

# 196,608 latents, but 49,152 on the residual stream.
PYTHIA_BASELINE = _read("""
attn_z.4 | 8e-5: 17.6/81.04/0.827; 6e-5: 24.2/84.12/0.848; 3e-5: 62.1/90.96/0.93
attn_z.12 | 16.1/51.88/0.78; 24/58.46/0.802; 75/72.84/0.848
attn_z.16 | 14.6/67.69/0.798; 20.8/72.07/0.813; 63/81.78/0.868
attn_z.20 | 13.6/85.63/0.871; 18.3/87.49/0.87; 52/91.92/0.899
attn_z.28 | 12.5/49.8/0.747; 20.6/57.17/0.771; 91.9/73.29/0.817
mlp_out.4 | 20/86.36/0.954; 43.3/87.2/0.986; 64.5/83.61/0.977
mlp_out.12 | 16.2/71.94/0.883; 28.2/76.01/0.909; 77.8/81.95/0.932
mlp_out.16 | 11.2/65.88/0.884; 22/70.73/0.901; 35.9/73.95/0.914; 79.8/78.44/0.919
mlp_out.20 | 20.6/91.28/0.971; 25.4/91.64/0.964; 269.2/93.37/0.962
mlp_out.28 | 18.5/67.4/0.92; 37/71.12/0.932; 95.2/79.05/0.941
resid_post.4 | 15.9/98.11/0.966; 28.1/98.67; 79.1/99.27
resid_post.12 | 25.1/93.87; 52.1/96.34; 128.7/97.68
resid_post.16 | 42.7/95.55; 94.8/96.48
resid_post.20 | 13.6/86.19; 33.4/90.97; 103.4/91.94
resid_post.28 | 21/95.09; 42.9/96.27; 109.2/97.45
""")
