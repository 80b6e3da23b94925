"""How good explanations of features are, by several measures on images that no explanation was made from."""
