"""The tasks of a conversion, what they do and report, and the graph that holds them."""
