"""What a model decides about a sample, and which part of its inputs that is attributed to."""
