"""g-SAE: sparse dictionaries of activations, chosen by effect on the loss (Olmo et al. 2025)."""
