"""Memory that a pass takes: what is saved for backward, what is alive, and where it peaks."""
