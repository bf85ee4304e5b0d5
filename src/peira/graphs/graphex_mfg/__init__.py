"""Graphex mean field games: equilibria of large populations on sparse power-law networks."""
