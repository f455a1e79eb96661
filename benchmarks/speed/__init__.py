"""Time and memory of the fused operations against their rivals, in one interleaved run."""
