"""How a model runs on this machine: device, memory plan, loader, decoders."""
