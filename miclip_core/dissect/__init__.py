"""Which concepts units answer to, by methods that train nothing: masks, captions, similarities of activations."""
