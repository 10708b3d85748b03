"""Inspection of dictionaries: which latents two of them share, and on which tokens a latent fires."""
