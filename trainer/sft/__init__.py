"""The downstream worker: supervised fine-tuning of a model on rewritten or raw demonstrations."""
