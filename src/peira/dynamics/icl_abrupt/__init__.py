"""In-context against in-weights learning, and why induction heads come abruptly (Reddy 2023)."""
