"""Checks and measures everything on one GPU: ``python -m jambacli.gpu_check``."""
