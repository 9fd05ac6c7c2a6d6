"""CUDA devices: memory, streams, and executables whose kernels are PTX."""
