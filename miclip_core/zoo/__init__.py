"""The model zoo: load a model by its ref, read and edit any named tensor of its forward pass, stream images through it."""
