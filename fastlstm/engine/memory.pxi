# Memory for the kernels, and the flag that keeps a second thread out of an object.

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap)


cdef extern from *:
    """
    #include "core/system.h"

    /* The flag is 0, or tells which process entered: 1 + its generation. Atomic, because a
       free-threaded interpreter has no GIL to make a test-and-set one step. */
    typedef enum { FL_ENTERED, FL_BUSY, FL_TORN } fl_entry;
    static inline fl_entry fl_enter(uint64_t *flag) {
        uint64_t found = 0, mine = fl_generation() + 1;
        if (__atomic_compare_exchange_n(flag, &found, mine, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return FL_ENTERED;
        return found == mine ? FL_BUSY : FL_TORN;
    }
    static inline void fl_leave(uint64_t *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
    """
    ctypedef enum fl_entry:
        FL_ENTERED, FL_BUSY, FL_TORN
    fl_entry fl_enter(uint64_t *flag) nogil
    void fl_leave(uint64_t *flag) nogil


cdef object not_entered(fl_entry why, str name, str busy, str instead):
    """The error of an object that a call cannot have.

    In a child process, a flag that was set as it was forked stays so: the thread that would clear
    it is not there, and what it was writing is half written.
    """
    if why == FL_BUSY:
        return RuntimeError(busy)
    return RuntimeError(
        f"another thread was using this {name} as this process was forked, so that its state here "
        f"may be half written; it cannot be used in this process: {instead}"
    )


cdef extern from *:
    """
    #include <sys/mman.h>

    /* Ask for pages of 2 MB, whose addresses a core keeps at hand where it would look up those of
       small ones again and again. A system that has none does without. */
    static inline void fl_have_huge_pages(char *data, size_t bytes) {
    #ifdef MADV_HUGEPAGE
        madvise(data, bytes, MADV_HUGEPAGE);
    #else
        (void)data, (void)bytes;
    #endif
    }
    """
    void fl_have_huge_pages(char *data, size_t bytes) nogil


cdef extern from "stdlib.h":
    void *aligned_alloc(size_t alignment, size_t size) nogil

cdef size_t HUGE_PAGE = 1 << 21


cdef class Buffer:
    """Memory for the kernels: 64-byte aligned, zeroed, freed with the object."""

    cdef char *data
    cdef size_t size

    def __cinit__(self, size_t size):
        cdef size_t alignment = HUGE_PAGE if size >= 2 * HUGE_PAGE else 64
        self.size = (size + 63) // 64 * 64 if size < <size_t>-64 else size
        self.data = <char *>aligned_alloc(alignment, self.size or 64)
        if self.data == NULL:
            raise MemoryError(f"{size} bytes of working memory")
        if alignment == HUGE_PAGE:
            fl_have_huge_pages(self.data, self.size)
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
