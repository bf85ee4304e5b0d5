"""A biased coin."""
