"""Commuter networks from urban indicators: who commutes where, how many, and why."""
