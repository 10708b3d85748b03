"""The inference form of a Gated SAE against its definition."""

import torch

from penstock.saes import JumpReLUSAE


def test_a_pre_activation_passes_unchanged_above_its_threshold_and_not_at_or_below_it() -> None:
    sae = JumpReLUSAE(1, 3)
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.b_enc.copy_(torch.tensor([0.0, 1.0, -1.0]))
        sae.threshold.copy_(torch.tensor([2.0, 2.0, 0.0]))
        sae.b_dec.fill_(0.5)
    # Pre-activations at x = 2.5: 2, 3, 1; at x = 1.5: 1, 2, 0; at x = 3: 2.5, 3.5, 1.5.
    acts = sae.encode(torch.tensor([[2.5], [1.5], [3.0]]))
    assert acts.tolist() == [[0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [2.5, 3.5, 1.5]]
