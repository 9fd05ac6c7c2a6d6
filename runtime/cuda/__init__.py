"""Running on NVIDIA GPUs: driver, memory, streams, arrays and executables. Nothing here loads with ``weft``.

- ``driver``: the driver API through pycuda, or over emulated machines (``WEFT_CUDA=emulate``).
- ``device``, ``memory``, ``stream``: the state of each device, the caching allocator, streams and events.
- ``array``, ``strided``, ``dlpack``: arrays on a device, views and copies, exchange with other libraries.
- ``build``, ``compile``, ``executable``, ``hostcall``: a graph on a GPU, from passes to calls.
- ``mixed``: graphs that compute small values on the CPU, too. ``eager``: single operations.
- ``graphs``: captured launches, issued again as one.
"""
