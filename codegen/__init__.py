"""Code generation: fused kernels to loop IR to LLVM IR to machine code."""
