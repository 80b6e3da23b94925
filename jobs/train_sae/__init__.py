"""Sparse autoencoders trained on the tokens of one site of one model, many of a sweep side by side on one stream."""
