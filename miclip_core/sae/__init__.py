"""Sparse autoencoders: train, run, measure, read and write; torch alone, without Ray or a store."""
