"""Forward Learning of Graph Neural Networks (Park et al., ICLR 2024)."""
