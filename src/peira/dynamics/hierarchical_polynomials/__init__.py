"""Hierarchical polynomials g(p(x)) learned layer by layer (Wang, Nichani & Lee, 2023)."""
