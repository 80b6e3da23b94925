"""The explorer: static pages over published Parquet, which a browser reads by ranges."""
