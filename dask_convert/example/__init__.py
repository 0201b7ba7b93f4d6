"""Realistic made-up data."""
