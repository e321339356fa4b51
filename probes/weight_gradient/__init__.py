"""Size of the gradient of every parameter for every sample, from one backward pass.

The operations that weights take part in are caught on their way, as the recurrent ones are by
:mod:`probes.recurrent.watching.split`, and computed with a backward pass that takes the weight
gradient apart by sample before it is summed.
"""
