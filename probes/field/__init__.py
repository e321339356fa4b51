"""Receptive fields: interval propagation through any forward, and sizes of effective fields."""
