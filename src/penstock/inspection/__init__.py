"""What looks into dictionaries: which latents two of them share, and on what tokens a latent fires."""
