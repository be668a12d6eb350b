"""Model files: GGUF read and written, metadata keys, Hugging Face checkpoints; knows nothing of computing."""
