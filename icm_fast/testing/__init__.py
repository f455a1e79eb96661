"""What tests and benchmarks share: input regimes, the error budget, plain-torch rivals, byte counts.

Imports torch and icm_fast.reference only.
"""
