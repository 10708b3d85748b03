"""Changes to a trained SAE: gradient pursuit in place of its encoder, thresholds, refitted magnitudes."""
