"""Blocks of a network that can be left out, found on any forward pass without tracing."""
