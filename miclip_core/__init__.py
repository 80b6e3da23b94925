"""The science: models, sites, taps and reducers; runs alone, without Ray or a store."""
