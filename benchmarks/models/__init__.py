"""What a whole model gains: ``python -m benchmarks.models``.

Real networks with random weights, as their packages make them and swapped by :func:`msr_cuda.fuse`:
one inference and one training step, in turns, and the share of the time that resampling has.
"""
