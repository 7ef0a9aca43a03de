# Memory for the kernels, and the flag that keeps a second thread out of an object.

from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap)


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


cdef Buffer at_least(Buffer buffer, size_t size):
    """The buffer, or a larger one; then without what was in it."""
    return buffer if buffer.size >= size else Buffer(max(size, 2 * buffer.size))


# Bytes that pages map at once.
cdef size_t PAGE_BYTES = 1 << 20


cdef class Pages:
    """Rows of memory that stay where they are while others are added.

    A row is zero and takes no memory until it is first touched; all go back to the system with the
    object.
    """

    cdef size_t row_bytes
    cdef int bits        # 2^bits rows a page
    cdef size_t count    # of pages
    cdef char **page     # (count,) of (2^bits, row_bytes)

    def __cinit__(self, size_t row_bytes):
        self.row_bytes = row_bytes
        while row_bytes << self.bits < PAGE_BYTES:
            self.bits += 1

    def __dealloc__(self):
        self.cut(0)
        free(self.page)

    cdef inline char *at(self, size_t row) noexcept:
        return (self.page[row >> self.bits]
                + (row & ((<size_t>1 << self.bits) - 1)) * self.row_bytes)

    cdef void cut(self, size_t count) noexcept:
        while self.count > count:
            self.count -= 1
            munmap(self.page[self.count], self.row_bytes << self.bits)

    cdef int resize(self, size_t rows) except -1:
        """Have so many rows, or leave all as it was and raise MemoryError."""
        cdef size_t wanted = (rows + (<size_t>1 << self.bits) - 1) >> self.bits
        cdef size_t before = self.count
        cdef char **page
        cdef void *mapped
        if wanted <= before:
            self.cut(wanted)
            return 0
        page = <char **>realloc(self.page, wanted * sizeof(void *))
        if page != NULL:
            self.page = page
            while self.count < wanted:
                mapped = mmap(NULL, self.row_bytes << self.bits, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                if mapped == MAP_FAILED:
                    break
                page[self.count] = <char *>mapped
                self.count += 1
        if self.count < wanted:
            self.cut(before)
            raise MemoryError(f"{rows} rows of {self.row_bytes} bytes")
        return 0
