"""Whether units of kindred concepts lie together in the space of a CLIP."""
