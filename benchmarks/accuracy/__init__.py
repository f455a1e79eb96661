"""Accuracy harness: trains small networks on real images with every method of the papers and reports what came out."""
