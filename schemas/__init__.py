"""The words everyone shares: specs, refs, plans, tables, store layout and errors; imports pydantic and pyarrow only."""
