# What the engine's own Cython needs of the core beside the public functions of __init__.pxd: parts
# of core/model.h and system.h, where every field has its meaning.

from libc.stdint cimport uint64_t


cdef extern from "core/model.h":
    ctypedef struct fl_kernel:
        const char *name
        size_t lanes, real_size
    const fl_kernel *const *fl_kernels
    const fl_kernel *fl_find(const char *name, size_t real_size)


cdef extern from "core/system.h":
    int fl_watch_forks()
    uint64_t fl_generation() nogil
