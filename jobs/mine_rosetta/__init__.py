"""Units that the models of a zoo share: statistics of each, pairs of models in tiles, the graph of all, a dictionary with maps."""
