"""What PyTorch holds or saves, and arrays under its names; ``reader`` is where it begins."""
