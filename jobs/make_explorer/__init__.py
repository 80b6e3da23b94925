"""The `explorer` kind: everything known of a unit in one row, as the pages of `miclip explore` read it."""
