"""The column shuffle itself: compiled loops, and what they work on. No files."""
