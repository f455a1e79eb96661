"""Tests that need a GPU: `make gpu-check` runs each file in a process of its own, for each backend."""
