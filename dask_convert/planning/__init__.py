"""What will be done, and what it takes: plain values and arithmetic."""
