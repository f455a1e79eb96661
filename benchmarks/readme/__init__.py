"""What README.md and benchmarks/results say of measurements, from the files there."""

from .page import main

__all__ = ["main"]
