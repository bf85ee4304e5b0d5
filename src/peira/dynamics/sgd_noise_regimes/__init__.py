"""Where the noise of stochastic gradient descent starts to matter (Sclocchi et al. 2023)."""
