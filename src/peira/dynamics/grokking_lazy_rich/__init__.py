"""Grokking as the passage from lazy to feature-learning training (Kumar et al. 2024)."""
