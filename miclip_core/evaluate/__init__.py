"""What alignment, localisation and description are worth: accuracy, text similarity, significance, geometry and error traces."""
