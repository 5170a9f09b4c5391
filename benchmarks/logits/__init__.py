"""Losses and decisions at the labels' resolution, from logits of a lower one.

``python -m benchmarks.logits`` measures them.
"""
