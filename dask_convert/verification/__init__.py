"""A store against its source, without the code that made it."""
