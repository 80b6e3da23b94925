"""What each method does in its rounds."""
