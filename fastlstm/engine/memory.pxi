# Memory for the kernels, and the flag that keeps a second thread out of an object.

from libc.stdlib cimport free
from libc.string cimport memset


cdef extern from *:
    """
    /* 1 if the caller now holds the flag, 0 if someone else does. Atomic, because a free-threaded
       interpreter has no GIL to make a test-and-set one step. */
    static inline int fl_enter(int *flag) {
        return !__atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE);
    }
    static inline void fl_leave(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
    """
    int fl_enter(int *flag) nogil
    void fl_leave(int *flag) nogil


cdef extern from "stdlib.h":
    void *aligned_alloc(size_t alignment, size_t size) nogil


cdef class Buffer:
    """Memory for the kernels: 64-byte aligned, zeroed, freed with the object."""

    cdef char *data
    cdef size_t size

    def __cinit__(self, size_t size):
        self.size = (size + 63) // 64 * 64 if size < <size_t>-64 else size
        self.data = <char *>aligned_alloc(64, self.size or 64)
        if self.data == NULL:
            raise MemoryError(f"{size} bytes of working memory")
        memset(self.data, 0, self.size)

    def __dealloc__(self):
        free(self.data)
