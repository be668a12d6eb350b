"""How a model runs on a CUDA GPU: memory, placement, upload, decode, and what stays in host memory."""
