"""Interventions: units of a site are scaled or shifted during a forward pass, and what the model says then is counted."""
