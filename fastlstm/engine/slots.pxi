# Slots: the states of many streams, and the numbers that name them.

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from *:
    """
    /* Have memory read while the caller goes on. */
    static inline void fl_fetch(const char *data, size_t bytes) {
        for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(data + i, 1);
    }
    static inline int64_t fl_next_count(int64_t *counter) {
        return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    }
    static inline void fl_raise_count(int64_t *counter, int64_t least) {
        int64_t now = __atomic_load_n(counter, __ATOMIC_RELAXED);
        while (now < least && !__atomic_compare_exchange_n(counter, &now, least, 0,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
    """
    void fl_fetch(const char *data, size_t bytes) nogil
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

# Bytes of states that are asked for while the slots of a call are looked up: of many streams, most
# are in no cache.
cdef size_t FETCH_BYTES = 1 << 13

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


cdef class Slots:
    """The states of many streams of a network: what a Pool is without its calls.

    States are never moved: calls read and write them in place.

    Parameters
    ----------
    network : Network
    capacity : int
        Slots there are.
    growth : int
        Slots that are added whenever all are taken; 0: none.
    """

    cdef readonly Network network
    cdef readonly Py_ssize_t capacity, growth
    cdef Py_ssize_t count           # of open slots
    cdef Py_ssize_t touched         # slots that were ever open: those of lower indices
    cdef int32_t first_free         # of these; -1: none
    cdef Pages states, records      # a state, and a fl_slot, for each index
    cdef uint64_t calls
    cdef Buffer rows, taken         # (N,) pointers to the states and the slots of a call
    cdef uint64_t busy
    cdef object __weakref__

    def __cinit__(self, Network network, capacity, growth=0, *args, **kwargs):
        capacity = as_count("capacity", capacity, 1, MOST_SLOTS)
        self.network = network
        self.growth = as_count("growth", growth, 0, MOST_SLOTS)
        self.first_free = -1
        # Whole cache lines, so that threads do not write to the same one.
        self.states = Pages(max((self.state_bytes() + 63) // 64 * 64, <size_t>64))
        self.records = Pages(sizeof(fl_slot))
        self.rows = self.taken = Buffer(0)
        self.add_slots(capacity)

    def __len__(self):
        return self.count

    def __contains__(self, slot):
        if isinstance(slot, bool) or not isinstance(slot, (int, np.integer)):
            return False
        self.enter()
        try:
            return 0 < slot < 2**63 and self.find(slot) != NULL
        finally:
            fl_leave(&self.busy)

    cdef int enter(self) except -1:
        cdef fl_entry entry = fl_enter(&self.busy)
        if entry != FL_ENTERED:
            raise not_entered(
                entry, "Pool",
                "this Pool is in use by another thread; one belongs to one thread at a time: give "
                "each thread a pool of its own with model.pool(), or hold a lock around its calls",
                "make another with model.pool(), and load what was saved")
        return 0

    cdef int add_slots(self, Py_ssize_t n) except -1:
        """Make the capacity n larger, or leave all as it was and raise MemoryError."""
        try:
            self.states.resize(self.capacity + n)
            self.records.resize(self.capacity + n)
        except MemoryError as error:
            self.states.resize(self.capacity)
            raise MemoryError(f"a pool of {self.capacity + n} streams") from error
        self.capacity += n
        return 0

    cdef inline char *state_at(self, size_t index) noexcept:
        return self.states.at(index)

    cdef inline fl_slot *slot_at(self, size_t index) noexcept:
        return <fl_slot *>self.records.at(index)

    cdef inline fl_slot *find(self, int64_t number) noexcept:
        """The open slot of this number, or NULL."""
        cdef size_t index = <size_t>(number & INDEX_MASK)
        cdef fl_slot *slot
        if number <= 0 or index >= <size_t>self.touched:
            return NULL
        slot = self.slot_at(index)
        return slot if slot.number == number else NULL

    cdef int make_room(self, Py_ssize_t n) except -1:
        """Have n slots free."""
        while self.capacity - self.count < n:
            if self.growth == 0 or self.capacity == MOST_SLOTS:
                taken = "all" if self.count == self.capacity else f"{self.count} of"
                raise RuntimeError(
                    f"{taken} {self.capacity} slots of this pool are taken; close streams, evict "
                    f"idle ones, or make the pool with a larger capacity= or with growth="
                )
            self.add_slots(min(self.growth, MOST_SLOTS - self.capacity))
        return 0

    cdef int64_t add(self, const void *state, int64_t steps) except -1:
        """Open a slot."""
        cdef size_t index
        cdef fl_slot *slot
        self.make_room(1)
        if self.first_free >= 0:
            index = self.first_free
            slot = self.slot_at(index)
            self.first_free = slot.next
        else:
            index = self.touched
            slot = self.slot_at(index)
            self.touched += 1
        slot.number = (((fl_next_count(&openings) - 1) % MOST_OPENINGS + 1) << INDEX_BITS
                       | <int64_t>index)
        slot.call = slot.made = 0
        slot.steps = steps
        slot.used = monotonic()
        memcpy(self.state_at(index), state, self.state_bytes())
        self.count += 1
        return slot.number

    cdef inline size_t state_bytes(self) noexcept:
        return self.network.state_bytes

    cdef int take(self, const int64_t *numbers, Py_ssize_t N) except -1:
        """Find the slots and states of a call, all of them open and different."""
        cdef Py_ssize_t i, fetched = FETCH_BYTES // self.states.row_bytes
        cdef int64_t number
        cdef uint64_t this_call
        cdef fl_slot *slot
        cdef fl_slot **taken
        cdef char **rows
        self.rows = at_least(self.rows, N * sizeof(void *))
        self.taken = at_least(self.taken, N * sizeof(void *))
        self.calls += 1
        rows, taken, this_call = <char **>self.rows.data, <fl_slot **>self.taken.data, self.calls
        for i in range(N):
            number = numbers[i]  # read once: the array is the caller's
            slot = self.find(number)
            if slot == NULL:
                raise not_open(number)
            if slot.call == this_call:
                raise ValueError(
                    f"slot {number} is given twice; expected different ones: pass several "
                    f"steps of a stream as a block of run"
                )
            slot.call = this_call
            taken[i] = slot
            rows[i] = self.state_at(<size_t>(number & INDEX_MASK))
            if i < fetched:
                fl_fetch(rows[i], self.states.row_bytes)
        return 0

    cdef Py_ssize_t take_slots(self, slots, int *ndim) except -1:
        """Take what a caller gives as `slots`; how many, and in `ndim` whether as an array."""
        cdef cnp.ndarray array
        cdef int64_t number
        if type(slots) is int:
            try:
                number = slots
            except OverflowError:
                raise not_open(slots) from None
            ndim[0] = 0
            self.take(&number, 1)
            return 1
        if (cnp.PyArray_CheckExact(slots) and cnp.PyArray_TYPE(<cnp.ndarray>slots) == cnp.NPY_INT64
                and (<cnp.ndarray>slots).ndim == 1
                and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>slots)):
            array = <cnp.ndarray>slots  # the usual case, without a Python call
        else:
            array = as_slots(slots)
        ndim[0] = array.ndim
        self.take(<const int64_t *>cnp.PyArray_DATA(array), array.size)
        return array.size

    def open_row(self, state=None):
        """Open a slot: where each sequence starts, or with a state (state_size,)."""
        if state is None:
            state = self.network.initial
        self.check_rows(state, 1)
        self.enter()
        try:
            return self.add(cnp.PyArray_DATA(<cnp.ndarray>state), 0)
        finally:
            fl_leave(&self.busy)

    def fork(self, slot):
        """Open a stream in the state of another.

        Parameters
        ----------
        slot : int
            The other one, which goes on as it was.

        Returns
        -------
        int
            The new slot.

        Raises
        ------
        ValueError
            If the slot is not open.
        RuntimeError
            If all slots are taken, or another thread uses this pool.
        """
        cdef int ndim = 0
        self.enter()
        try:
            if self.take_slots(slot, &ndim) != 1 or ndim:
                raise ValueError(f"slot is {slot!r}; expected the number of one")
            return self.add((<void **>self.rows.data)[0], (<fl_slot **>self.taken.data)[0].steps)
        finally:
            fl_leave(&self.busy)

    def close(self, slots):
        """Close streams, zero their states, and free their slots.

        Parameters
        ----------
        slots : int64 array (N,), or int

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice. None is closed then.
        RuntimeError
            If another thread uses this pool.
        """
        cdef int ndim = 0
        self.enter()
        try:
            self.close_taken(self.take_slots(slots, &ndim))
        finally:
            fl_leave(&self.busy)

    cdef void close_taken(self, Py_ssize_t N) noexcept:
        cdef Py_ssize_t i
        cdef fl_slot *slot
        for i in range(N):
            slot = (<fl_slot **>self.taken.data)[i]
            memset((<void **>self.rows.data)[i], 0, self.state_bytes())
            slot.next = self.first_free
            self.first_free = <int32_t>(slot.number & INDEX_MASK)
            slot.number = 0
            self.count -= 1

    def reset(self, slots, *, held=None):
        """Put streams where each sequence starts.

        Parameters
        ----------
        slots : int64 array (N,), or int
        held : mapping of str to array (N, ...) or (...), optional
            Of every input that is held for a sequence, if the model has some.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice, or `held` does not fit. None is reset then.
        RuntimeError
            If another thread uses this pool.
        """
        cdef int ndim = 0
        cdef Py_ssize_t i, N
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            self.network.begin_rows(<void **>self.rows.data, N,
                                    self.network.held_of(held, N, ndim != 0))
            for i in range(N):
                (<fl_slot **>self.taken.data)[i].steps = (<fl_slot **>self.taken.data)[i].made = 0
                (<fl_slot **>self.taken.data)[i].used = monotonic()
        finally:
            fl_leave(&self.busy)

    def steps(self, slots):
        """Steps that streams have made since they were opened or reset.

        Parameters
        ----------
        slots : int64 array (N,), or int

        Returns
        -------
        int64 array (N,), or int
            A stream from :meth:`fork` or :meth:`load` counts on from what it was made of.
        """
        cdef int ndim = 0
        cdef cnp.ndarray counts
        self.enter()
        try:
            counts = self.steps_taken(self.take_slots(slots, &ndim))
            return counts if ndim else int(counts[0])
        finally:
            fl_leave(&self.busy)

    cdef cnp.ndarray steps_taken(self, Py_ssize_t N):
        cdef Py_ssize_t i
        cdef cnp.ndarray counts = np.empty(N, np.int64)
        for i in range(N):
            (<int64_t *>cnp.PyArray_DATA(counts))[i] = (<fl_slot **>self.taken.data)[i].steps
        return counts

    def idle(self, seconds):
        """Streams that have not been used for some time.

        Parameters
        ----------
        seconds : float
            Since a stream was opened, stepped, reset or given a state.

        Returns
        -------
        int64 array (N,)
            Their slots, the one that has waited longest first.
        """
        cdef double limit = as_duration("seconds", seconds, "seconds")
        self.enter()
        try:
            return self.idle_numbers(limit)
        finally:
            fl_leave(&self.busy)

    def evict(self, seconds):
        """Close the streams that have not been used for some time.

        Parameters
        ----------
        seconds : float
            As for :meth:`idle`.

        Returns
        -------
        int64 array (N,)
            The slots that were closed.

        Raises
        ------
        RuntimeError
            If another thread uses this pool.
        """
        cdef double limit = as_duration("seconds", seconds, "seconds")
        cdef int ndim = 0
        self.enter()
        try:
            numbers = self.idle_numbers(limit)
            self.close_taken(self.take_slots(numbers, &ndim))
            return numbers
        finally:
            fl_leave(&self.busy)

    cdef cnp.ndarray idle_numbers(self, double limit):
        cdef double now = monotonic()
        cdef Py_ssize_t index
        cdef fl_slot *slot
        cdef list found = []
        for index in range(self.touched):
            slot = self.slot_at(index)
            if slot.number and now - slot.used >= limit:
                found.append((slot.used, slot.number))
        return np.array([number for _, number in sorted(found)], np.int64)

    @property
    def slots(self):
        """The slots of all open streams: int64 array (N,)."""
        self.enter()
        try:
            return self.all_numbers()
        finally:
            fl_leave(&self.busy)

    cdef cnp.ndarray all_numbers(self):
        cdef cnp.ndarray numbers = np.empty(self.count, np.int64)
        cdef int64_t *to = <int64_t *>cnp.PyArray_DATA(numbers)
        cdef Py_ssize_t index, n = 0
        for index in range(self.touched):
            if self.slot_at(index).number:
                to[n] = self.slot_at(index).number
                n += 1
        return numbers

    cdef int check_rows(self, cnp.ndarray block, Py_ssize_t N) except -1:
        if not (is_of(block, self.network.type_num) and cnp.PyArray_ISCARRAY_RO(block)
                and block.size == N * self.network.state_size):
            raise ValueError("the states do not fit the network")
        return 0

    def read_rows(self, slots):
        """The states of some streams: array (N, state_size)."""
        cdef int ndim = 0
        self.enter()
        try:
            return self.rows_taken(self.take_slots(slots, &ndim))
        finally:
            fl_leave(&self.busy)

    cdef cnp.ndarray rows_taken(self, Py_ssize_t N):
        cdef Py_ssize_t i
        cdef cnp.ndarray block
        block = np.empty((N, self.network.state_size), self.network.dtype)
        for i in range(N):
            memcpy(<char *>cnp.PyArray_DATA(block) + i * self.state_bytes(),
                   (<void **>self.rows.data)[i], self.state_bytes())
        return block

    def snapshot(self, slots=None):
        """Some streams, or all of them, as they are at one moment.

        Returns
        -------
        int64 array (N,), array (N, state_size), int64 array (N,)
            Their slots, states and steps.
        """
        cdef int ndim = 0
        cdef Py_ssize_t N
        self.enter()
        try:
            numbers = self.all_numbers() if slots is None else as_slots(slots)
            N = self.take_slots(numbers, &ndim)
            return numbers.reshape(N), self.rows_taken(N), self.steps_taken(N)
        finally:
            fl_leave(&self.busy)

    def open_rows(self, block, steps):
        """Open a slot for each of the states (N, state_size), all of them or none.

        Parameters
        ----------
        block : array (N, state_size)
        steps : int64 array (N,)
            That they have made.

        Returns
        -------
        int64 array (N,)
        """
        cdef cnp.ndarray counts = np.require(steps, np.int64, ["C", "A"])
        cdef Py_ssize_t N = counts.size, i
        cdef cnp.ndarray numbers = np.empty(N, np.int64)
        self.check_rows(block, N)
        self.enter()
        try:
            self.make_room(N)
            for i in range(N):
                (<int64_t *>cnp.PyArray_DATA(numbers))[i] = self.add(
                    <char *>cnp.PyArray_DATA(<cnp.ndarray>block) + i * self.state_bytes(),
                    (<int64_t *>cnp.PyArray_DATA(counts))[i])
            return numbers
        finally:
            fl_leave(&self.busy)

    def write_rows(self, slots, block):
        """Replace the states of some streams by those of an array (N, state_size)."""
        cdef int ndim = 0
        cdef Py_ssize_t i
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            self.check_rows(block, N)
            for i in range(N):
                memcpy((<void **>self.rows.data)[i],
                       <char *>cnp.PyArray_DATA(<cnp.ndarray>block) + i * self.state_bytes(),
                       self.state_bytes())
                (<fl_slot **>self.taken.data)[i].made = 0
                (<fl_slot **>self.taken.data)[i].used = monotonic()
        finally:
            fl_leave(&self.busy)

    def restore(self, numbers, block, steps):
        """Have an empty pool hold streams under the numbers they had in another process.

        Parameters
        ----------
        numbers : int64 array (N,)
        block : array (N, state_size)
        steps : int64 array (N,)
        """
        cdef cnp.ndarray given = as_slots(numbers)
        cdef const int64_t *number = <const int64_t *>cnp.PyArray_DATA(given)
        cdef Py_ssize_t N = given.size, i, index
        cdef fl_slot *slot
        self.check_rows(block, N)
        self.enter()
        try:
            indices = given & INDEX_MASK
            if (self.touched or N and (given.min() <= INDEX_MASK or len(np.unique(indices)) < N
                                       or indices.max() >= self.capacity)):
                raise ValueError("the slots do not fit this pool")
            self.touched = indices.max() + 1 if N else 0
            for index in range(self.touched):
                self.slot_at(index).number = 0
            for i in range(N):
                slot = self.slot_at(number[i] & INDEX_MASK)
                slot.number, slot.call, slot.steps, slot.used = number[i], 0, steps[i], monotonic()
                slot.made = 0
                memcpy(self.state_at(number[i] & INDEX_MASK),
                       <char *>cnp.PyArray_DATA(<cnp.ndarray>block) + i * self.state_bytes(),
                       self.state_bytes())
                fl_raise_count(&openings, number[i] >> INDEX_BITS)
            for index in range(self.touched - 1, -1, -1):
                slot = self.slot_at(index)
                if slot.number == 0:
                    slot.next = self.first_free
                    self.first_free = index
            self.count = N
        finally:
            fl_leave(&self.busy)
