"""Controls of every sweep: identity, zero and mean ablation, and PCA."""

import torch
from jaxtyping import Float
from torch import Tensor

from penstock.evaluation.evaluate import Candidate
from penstock.shapes import Acts
from penstock.sparse import SparseCode


def controls(site: str, acts: Acts, pca_components: tuple[int, ...]) -> list[Candidate]:
    """The controls identity, zero, mean, and PCA with k components.

    Args:
        site: The site at which they take the place of an SAE.
        acts: Training activations [tokens, d_in] in raw units, on which PCA and the mean are fitted.
        pca_components: Values of k, each between 1 and d_in.

    Returns:
        Candidates named `identity-SITE`, `zero-SITE`, `mean-SITE`, `pca_K-SITE`.
    """
    mean = acts.double().mean(dim=0)
    d_in = len(mean)
    nothing = torch.zeros(0, d_in, device=acts.device)
    zero = torch.zeros(d_in, device=acts.device)
    everything = torch.eye(d_in, device=acts.device)
    directions = principal_directions(acts)
    return [
        _linear(f"identity-{site}", site, everything, zero),
        _linear(f"zero-{site}", site, nothing, zero),
        _linear(f"mean-{site}", site, nothing, mean.float()),
        *(_linear(f"pca_{k}-{site}", site, directions[:k], mean.float()) for k in pca_components),
    ]


def principal_directions(acts: Acts) -> Float[Tensor, "d_in d_in"]:
    """Orthonormal rows, the direction of largest variance first."""
    centred = acts.double() - acts.double().mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return vectors.flip(1).T.float().contiguous()


def _linear(name: str, site: str, rows: Tensor, centre: Tensor) -> Candidate:
    """A candidate whose code are coordinates along orthonormal rows; every non-zero one counts as firing."""

    def encode(x: Acts) -> SparseCode:
        return SparseCode.from_dense((x - centre) @ rows.T)

    def decode(acts: SparseCode) -> Acts:
        return acts.to_dense() @ rows + centre

    return Candidate(name, site, len(centre), encode, decode, rows.norm(dim=1))
