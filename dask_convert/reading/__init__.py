"""Genes of a store."""
