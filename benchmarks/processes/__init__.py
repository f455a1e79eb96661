"""What a step sends where several processes hold parts of one batch, measured, and what that would cost 1000 GPUs."""
