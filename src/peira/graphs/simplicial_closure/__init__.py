"""Simplicial closure and higher-order link prediction (Benson et al., PNAS 2018)."""
