"""What trains the tiny Jamba of the box: corpus, tokenizer, model, loop. Nothing that runs models knows of it."""
