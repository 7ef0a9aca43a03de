# Ledger: which slots are open, and the numbers that name them.

from libc.stdint cimport int32_t, int64_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from *:
    """
    static inline int64_t fl_next_count(int64_t *counter) {
        return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    }
    static inline void fl_raise_count(int64_t *counter, int64_t least) {
        int64_t now = __atomic_load_n(counter, __ATOMIC_RELAXED);
        while (now < least && !__atomic_compare_exchange_n(counter, &now, least, 0,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
    """
    int64_t fl_next_count(int64_t *counter) nogil
    void fl_raise_count(int64_t *counter, int64_t least) nogil


# A slot's number is its index, and above these bits a count of the streams that this process has
# opened in any pool: the number of a stream that was closed, or is another pool's, is never that of
# the one which now has the place. Numbers repeat after 2^39 openings.
cdef enum:
    INDEX_BITS = 24
    INDEX_MASK = (1 << INDEX_BITS) - 1

cdef int64_t MOST_OPENINGS = (<int64_t>1 << 39) - 1
cdef int64_t openings = 0

MOST_SLOTS = 1 << INDEX_BITS

cdef struct fl_slot:
    int64_t number   # 0 while it is free
    uint64_t call    # the last one that named it
    int64_t steps    # made since it was opened or reset
    double used      # seconds of the monotonic clock
    int32_t next     # the next free one; -1: none
    int32_t made     # whether what of its next step does not need its input was, of this state


cdef double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + 1e-9 * now.tv_nsec


cdef object not_open(number):
    return ValueError(
        f"slot {number} is not open in this pool: it was closed, or evicted, or belongs to another "
        f"pool; slots come from open, fork and load"
    )


def as_slots(slots):
    """Slot numbers as a contiguous int64 array (N,), or () of a single one.

    Raises
    ------
    TypeError
        If they are not integers.
    ValueError
        If they have more dimensions, or one is too large to be a slot's.
    """
    if not isinstance(slots, (np.ndarray, list, tuple, int, np.integer)) or isinstance(
            slots, (bool, np.ma.MaskedArray)):
        raise TypeError(
            f"slots is a {type_text(slots)}; expected the number of a slot, or an integer array "
            f"(N,) of them")
    array = np.asarray(slots)
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
            raise not_open(array.max())
    elif isinstance(slots, (list, tuple, int)):
        for number in slots if array.ndim else (slots,):
            if isinstance(number, (int, np.integer)) and not -2**63 <= number < 2**63:
                raise not_open(number)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(
            f"slots has dtype {array.dtype}; expected int64, the numbers that open returned")
    if array.ndim > 1:
        raise ValueError(f"slots has shape {(<object>array).shape}; expected (N,) or one number")
    return np.require(array, np.int64, ["C", "A"])


cdef inline size_t index_of(const fl_slot *slot) noexcept:
    return <size_t>(slot.number & INDEX_MASK)


@cython.final
cdef class Ledger:
    """Which slots are open, under which numbers, and what each has done."""

    cdef Pages records              # a fl_slot for each index
    cdef Py_ssize_t count           # of open slots
    cdef Py_ssize_t touched         # slots that were ever open: those of lower indices
    cdef int32_t first_free         # of these; -1: none
    cdef uint64_t calls

    def __cinit__(self):
        self.records = Pages(sizeof(fl_slot))
        self.first_free = -1

    cdef inline fl_slot *at(self, size_t index) noexcept:
        return <fl_slot *>self.records.at(index)

    cdef inline fl_slot *find(self, int64_t number) noexcept:
        """The open slot of this number, or NULL."""
        cdef size_t index = <size_t>(number & INDEX_MASK)
        cdef fl_slot *slot
        if number <= 0 or index >= <size_t>self.touched:
            return NULL
        slot = self.at(index)
        return slot if slot.number == number else NULL

    cdef inline fl_slot *take(self, int64_t number) except NULL:
        """The open slot of this number, which the call, one of `calls`, has not taken yet."""
        cdef fl_slot *slot = self.find(number)
        if slot == NULL:
            raise not_open(number)
        if slot.call == self.calls:
            raise ValueError(
                f"slot {number} is given twice; expected different ones: pass several "
                f"steps of a stream as a block of run"
            )
        slot.call = self.calls
        return slot

    cdef fl_slot *open(self, int64_t steps) noexcept:
        """Open a slot, for which there is a record."""
        cdef size_t index
        cdef fl_slot *slot
        if self.first_free >= 0:
            index = self.first_free
            slot = self.at(index)
            self.first_free = slot.next
        else:
            index = self.touched
            slot = self.at(index)
            self.touched += 1
        slot.number = (((fl_next_count(&openings) - 1) % MOST_OPENINGS + 1) << INDEX_BITS
                       | <int64_t>index)
        slot.call = slot.made = 0
        slot.steps = steps
        slot.used = monotonic()
        self.count += 1
        return slot

    cdef void close(self, fl_slot *slot) noexcept:
        slot.next = self.first_free
        self.first_free = <int32_t>index_of(slot)
        slot.number = 0
        self.count -= 1

    cdef cnp.ndarray numbers(self):
        """Those of all open slots."""
        cdef cnp.ndarray numbers = np.empty(self.count, np.int64)
        cdef int64_t *to = <int64_t *>cnp.PyArray_DATA(numbers)
        cdef Py_ssize_t index, n = 0
        for index in range(self.touched):
            if self.at(index).number:
                to[n] = self.at(index).number
                n += 1
        return numbers

    cdef cnp.ndarray idle(self, double limit):
        """Those of slots that have not been used for so many seconds, the longest first."""
        cdef double now = monotonic()
        cdef Py_ssize_t index
        cdef fl_slot *slot
        cdef list found = []
        for index in range(self.touched):
            slot = self.at(index)
            if slot.number and now - slot.used >= limit:
                found.append((slot.used, slot.number))
        return np.array([number for _, number in sorted(found)], np.int64)

    cdef int restore(self, cnp.ndarray numbers, steps, Py_ssize_t capacity) except -1:
        """Open slots under the numbers (N,) that they had in another process, where none was."""
        cdef const int64_t *number = <const int64_t *>cnp.PyArray_DATA(numbers)
        cdef Py_ssize_t N = numbers.size, i, index
        cdef fl_slot *slot
        indices = numbers & INDEX_MASK
        if (self.touched or N and (numbers.min() <= INDEX_MASK or len(np.unique(indices)) < N
                                   or indices.max() >= capacity)):
            raise ValueError("the slots do not fit this pool")
        self.touched = indices.max() + 1 if N else 0
        for index in range(self.touched):
            self.at(index).number = 0
        for i in range(N):
            slot = self.at(number[i] & INDEX_MASK)
            slot.number, slot.steps, slot.used = number[i], steps[i], monotonic()
            slot.call = slot.made = 0
            fl_raise_count(&openings, number[i] >> INDEX_BITS)
        for index in range(self.touched - 1, -1, -1):
            slot = self.at(index)
            if slot.number == 0:
                slot.next = self.first_free
                self.first_free = index
        self.count = N
        return 0
