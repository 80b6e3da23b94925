"""How right each method's descriptions and localisations are, how strongly its units act, and which differences are real."""
