"""What needs a GPU: `check` (are the kernels right there?) and `bench` (how fast are they, against whom?)."""
