"""The loss of single samples, and what it changes by when a part is removed or replaced."""
