"""Data a model was trained on beside others: scores, gradients and how far they agree."""
