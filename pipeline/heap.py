"""Have the children of a fork server begin with memory of their own.

What a server has freed still lies in its heap. A child that is given such memory copies it, page by page, before it writes to
it: a fault of some microseconds for every 4 KiB, where new memory comes in huge pages, 2 MiB for one fault. So the server takes
all that is free in its heap, for good and without touching it, and lets the heap go on where a huge page begins.

For the C library of GNU; with another nothing is done. It takes some 3 ms off a short video.
"""

import ctypes

HUGE = 2 << 20  # bytes of a huge page, on which the memory of a child begins
LARGEST, SMALL, LEAST = 4 << 20, 512, 16  # bytes of what is taken; sizes are halved, and the small ones all tried
MOST = 1 << 30  # bytes of a heap; what is further away is none of it
OWN = 96 << 10  # bytes that stay free for the server, which else would begin the children's page
PAGE, HEADER = 4 << 10, 32


def use_up() -> None:
    """Take what is free in the heap of this process, but for a little; what it allocates from now on is new memory."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        return
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_size_t
    library.free.argtypes, library.free.restype = [ctypes.c_size_t], None
    library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t
    library.malloc_trim(0)  # what is taken is given back to the kernel first, and only its first bytes are written to
    end, size = library.sbrk(0), LARGEST
    while size >= LEAST:
        while end - MOST < (at := library.malloc(size)) < end:
            pass
        library.free(at)
        size = size // 2 if size > SMALL else size - LEAST
    library.malloc_trim(0)  # these tries have touched what lies beyond the end
    own = library.malloc(OWN)
    if not end <= own < end + MOST:  # the heap does not grow
        return
    border = -(-(own + OWN + 2 * PAGE) // HUGE) * HUGE
    library.malloc(border - PAGE - HEADER - (own + OWN))
    library.free(own)
    library.malloc_trim(0)  # what lies beyond is for each child to ask for, within its limit
