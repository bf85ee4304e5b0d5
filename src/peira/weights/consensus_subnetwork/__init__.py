"""Gates that depend on the input, made to agree: one training run leaves one smaller network."""
