"""A model under measurement: its tensors and calls tapped, its state put back."""
