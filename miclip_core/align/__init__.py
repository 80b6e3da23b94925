"""The neuron encoder: a linear map from the activations of a site into the joint space of a CLIP, how it is learned and used."""
