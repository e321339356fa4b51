"""One recurrent layer: what it computed, and exact backpropagation through its time."""
