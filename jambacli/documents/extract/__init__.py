"""Files -> text with page or line numbers, one module a kind; knows nothing of models, prompts or consoles."""
