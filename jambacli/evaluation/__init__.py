"""Measures models: speed, perplexity, divergence from a reference, recall. Makes synthetic models for that."""
