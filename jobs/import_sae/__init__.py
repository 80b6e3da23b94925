"""Reads SAEs of other libraries, publishes them in our own format and measures them on held-out images."""
