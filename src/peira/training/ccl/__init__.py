"""Cyclical curriculum learning: easy-biased subsets whose size goes up and down (Kesgin 2023)."""
