"""Gradients of truncated backpropagation through time, of all lengths at once."""
