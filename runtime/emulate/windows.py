"""Where the state spaces lie in the generic address space.

Device addresses are no host addresses: nothing of the host is mapped at them, so that following one faults.
"""

GLOBAL_BASE = 0x10_0000_0000
SHARED_WINDOW = 0x7000_0000_0000
LOCAL_WINDOW = 0x7100_0000_0000
PARAM_WINDOW = 0x7200_0000_0000
WINDOW_BYTES = 1 << 32
# the first address of .shared and of .local: 0 is none of either
SHARED_BASE = 1024
LOCAL_BASE = 0

# what cvta adds to an address of a space
SPACES = {"global": 0, "const": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}
RANGES = {
    "global": (GLOBAL_BASE, SHARED_WINDOW),
    "const": (GLOBAL_BASE, SHARED_WINDOW),
    "shared": (SHARED_WINDOW, SHARED_WINDOW + WINDOW_BYTES),
    "local": (LOCAL_WINDOW, LOCAL_WINDOW + WINDOW_BYTES),
    "param": (PARAM_WINDOW, PARAM_WINDOW + WINDOW_BYTES),
}
