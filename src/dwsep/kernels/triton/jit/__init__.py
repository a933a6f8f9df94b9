"""What Triton compiles: importing anything here needs ``triton``."""
