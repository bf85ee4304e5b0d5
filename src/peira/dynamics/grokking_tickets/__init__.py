"""Grokking tickets: subnetworks that generalise many times sooner (Minegishi et al. 2023)."""
