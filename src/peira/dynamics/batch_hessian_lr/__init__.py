"""Learning rates as a function of batch size, from the curvature that a batch sees."""
