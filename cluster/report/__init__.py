"""A report: what runs published, as one HTML file that needs nothing else."""
