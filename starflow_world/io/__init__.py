"""Files, tensors, pictures and plots: reading and writing, without any model."""
