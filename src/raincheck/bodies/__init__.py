"""Bodies that are large are kept apart from the records that they belong to."""
