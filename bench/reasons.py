"""Why a target is missed, when it is: what the profile shows (`perf record`, `strace -T`), by the target's label."""

from __future__ import annotations

REASONS = {
    "put 1 KB array, p50": (
        "three system calls (pwrite, linkat, close) on a file that was opened and reserved before: most of the time is "
        "the kernel's"
    ),
    "get 1 KB array, p50": (
        "the kernel takes 56 % (openat, pread, close), the interpreter 30 %, this store 7 %. Below that only an index "
        "in shared memory helps, which needs no system call and gives up the kernel's bookkeeping"
    ),
    "put 1 KB, 1 client": (
        "the mean, where the row above has the median: each file must also be opened (4 us of the stock's thread) and, "
        "when billed, reserved (5 us of the sidecar's), on two cores. Four fifths of all time are the kernel's"
    ),
    "get 1 KB, 1 client": "the same as its median, and the interpreter's loop",
    "put 1 KB, 8 clients": (
        "no core is idle, so opening and reserving ahead hides nothing: 4 us of the stock's thread and 5 us of the "
        "sidecar come on top of each put"
    ),
    "get 1 KB, 8 clients": "two cores, all of whose time is the kernel's and the interpreters'",
    "put 256 MiB, memory never touched": (
        "clearing pages that are overwritten a moment later, and copying, share the memory's bandwidth. The kernel "
        "spares nobody the clearing on a mount whose huge pages nobody can steal. Where it is billed, the sidecar does "
        "it and has to be woken"
    ),
    "put 1 GiB where one was removed": (
        "the pages of the removed object are written again, so nothing is allocated, cleared or freed: it is the copy "
        "alone, by two threads"
    ),
    "put 1 GiB into reserved pages (fill, seal)": "it is the user's own copy alone, by one thread of NumPy",
    "create and seal in place, 1 GiB": (
        "twenty system calls, none of which depends on the size. The dearest are the two mappings of the same "
        "addresses, shared for the user to fill and then private, the file's second opening and its rename. A sparse "
        "file needs less, and is protected by nothing"
    ),
    "seal in place, 1 GiB": (
        "most of the above: the lease that proves that nobody else writes, the private mapping, the rename"
    ),
    "get 1 GiB": (
        "six system calls with cold caches, after a garbage collection, take two thirds; one of them makes sure that "
        "the object was not removed while it was opened. The rest is the interpreter's"
    ),
    "fresh process: attach, get, read 256 MiB": (
        "reading the bytes is nearly all of it, at the speed of a new mapping of huge pages (`fresh_floor_ms`)"
    ),
    "put DataFrame 1e6 x 10": (
        "the copy of ten columns into the pages of the frame that was removed before, and 0.5 ms of encoding. Without "
        "such pages new ones have to be cleared first, as for the block above"
    ),
    "get DataFrame 1e6 x 10": (
        "0.14 ms in a loop; here every get comes after a garbage collection, with cold caches. The rest is pandas' own "
        "construction of a frame and its columns"
    ),
}
