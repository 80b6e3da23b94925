"""What features of a vision tower mean, in words that the language model reading it finds for them."""
