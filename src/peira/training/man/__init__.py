"""Momentum Auxiliary Network for supervised local learning (Su et al., ECCV 2024)."""
