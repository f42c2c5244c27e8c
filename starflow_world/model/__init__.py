"""The trained parts of a world around its flow, and their checkpoints."""
