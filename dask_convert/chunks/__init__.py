"""Chunks of stored arrays, from bytes to elements; knows nothing of what wrote them."""
