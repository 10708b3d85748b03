"""What the architectures share: the base classes, the declaration of facts, the decoder rules."""
