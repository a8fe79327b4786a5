"""Bias-free networks: their layers and models, exact batch-norm statistics, folding, and their norms."""
