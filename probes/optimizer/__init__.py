"""What an optimizer kept in a checkpoint, and the updates it made."""
