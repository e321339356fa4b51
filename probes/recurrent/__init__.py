"""Exact gradients of recurrent layers over time, layer and direction.

torch computes a whole recurrent layer in one operation, and the gradient of what that returns is
not the gradient of the states, which feed each other inside. So every such operation is replayed
layer by layer and differentiated analytically: the total derivative of a loss with respect to every
hidden state, cell state and gate comes out of one ordinary backward pass, with the model untouched.

Begin at :func:`probes.recurrent.watching.split.recorded`.
"""
