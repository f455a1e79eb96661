"""Trainers of other libraries: each module here imports its own."""
