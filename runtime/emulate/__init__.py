"""An emulated CUDA device, which executes PTX text in numpy."""
