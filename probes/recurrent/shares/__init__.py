"""What every timestep adds to the gradients of weights that all timesteps share."""
