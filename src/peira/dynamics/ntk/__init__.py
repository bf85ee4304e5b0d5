"""Neural tangent kernels: of infinite and of actual networks, and what they say of training."""
