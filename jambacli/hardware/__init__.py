"""What this machine has: cores, memory, GPUs and their speed."""
