# Scratch: the memory that calls work in.

from fastlstm cimport FL_OK, fl_error, fl_scratch, fl_scratch_init, fl_scratch_size


@cython.final
cdef class Scratch:
    """Memory that calls of a network work in, one at a time."""

    cdef Buffer memory
    cdef fl_scratch *made
    cdef Packed packed              # whose calls it is for
    cdef size_t T, B

    def __cinit__(self):
        self.memory = Buffer(0)

    cdef int fit(self, Network network, Packed packed, size_t T, size_t B) except -1:
        """Be for calls of up to T steps of B rows, of what the network is packed as."""
        cdef size_t size = 0, threads = network.threads.size if network.team != NULL else 1
        cdef fl_error error
        if self.packed is packed and self.T == T and self.B == B:
            return 0
        self.packed = None
        if fl_scratch_size(packed.model, T, B, threads, &size) != FL_OK:
            raise MemoryError(f"{T} steps of {B} rows are more than there can be")
        self.memory = at_least(self.memory, size)
        error = fl_scratch_init(packed.model, T, B, threads, self.memory.data, self.memory.size,
                                &self.made)
        if error != FL_OK:
            raise failed(error, NULL)
        self.packed, self.T, self.B = packed, T, B
        return 0
