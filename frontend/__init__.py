"""weft: a PyTorch-shaped tensor library whose functions compile."""
