"""What the same pipeline is compared with."""
