"""Features in words: a vision-language model is shown their top images, steered by their direction, or both."""
