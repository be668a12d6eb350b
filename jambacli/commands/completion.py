def completion() -> None:
    """x"""
