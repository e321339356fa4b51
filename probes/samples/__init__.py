"""Batches and their samples: where time is, which are taken, which go together."""
