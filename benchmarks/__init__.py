"""Measurements: what the package costs, and what the methods are worth."""
