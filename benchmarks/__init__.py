"""Costs of the probes, and of other tools where they run, in forward and backward passes."""
