"""What becomes of a model's accuracy when the units that were found for its classes are changed, method by method."""
