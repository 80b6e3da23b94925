"""SAEs on images that their training did not see: one stage beside each that is trained or imported."""
