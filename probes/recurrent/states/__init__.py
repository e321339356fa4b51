"""What the states of recurrent layers look like and hold."""
