"""A run from its lock to its published target, resumed if need be."""
