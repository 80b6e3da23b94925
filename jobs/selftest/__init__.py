"""A torch-free kind that runs the whole corridor on deterministic rows, with switches for what can go wrong."""
