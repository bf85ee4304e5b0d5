"""Parallel learning by multitasking neural networks (Agliari and others, 2023)."""
