"""The runtime: buffers, threads, the just-in-time linker, executables and the kernel cache."""
