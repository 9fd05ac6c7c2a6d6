"""Code generation for NVIDIA GPUs: fused kernels to LLVM IR for the NVPTX backend."""
