"""What layers return over many samples: which directions it fills, and which units do nothing."""
