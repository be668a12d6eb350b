"""Trains the demo model: tokenizer, batches, model, training loop, export."""
