"""The name under which stages publish the weights of an SAE; loads no torch."""

WEIGHTS = "sae.safetensors"
"""The artifact of every stage whose output is `sae`, in our own format."""
