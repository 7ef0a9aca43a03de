# Slots: the states of many streams, each named by a number.

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset


cdef extern from *:
    """
    /* Have memory read while the caller goes on. */
    static inline void fl_fetch(const char *data, size_t bytes) {
        for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(data + i, 1);
    }
    """
    void fl_fetch(const char *data, size_t bytes) nogil


# Bytes of states that are asked for while the slots of a call are looked up: of many streams, most
# are in no cache.
cdef size_t FETCH_BYTES = 1 << 13


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
    cdef Ledger ledger
    cdef Pages states               # a state for each index
    cdef Buffer rows, taken         # (N,) pointers to the states and the slots of a call
    cdef uint64_t busy
    cdef object __weakref__

    def __cinit__(self, Network network, capacity, growth=0, *args, **kwargs):
        capacity = as_count("capacity", capacity, 1, MOST_SLOTS)
        self.network = network
        self.growth = as_count("growth", growth, 0, MOST_SLOTS)
        self.ledger = Ledger()
        # Whole cache lines, so that threads do not write to the same one.
        self.states = Pages(max((self.state_bytes() + 63) // 64 * 64, <size_t>64))
        self.rows = self.taken = Buffer(0)
        self.add_slots(capacity)

    def __len__(self):
        return self.ledger.count

    def __contains__(self, slot):
        if isinstance(slot, bool) or not isinstance(slot, (int, np.integer)):
            return False
        self.enter()
        try:
            return 0 < slot < 2**63 and self.ledger.find(slot) != NULL
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
            self.ledger.records.resize(self.capacity + n)
        except MemoryError as error:
            self.states.resize(self.capacity)
            raise MemoryError(f"a pool of {self.capacity + n} streams") from error
        self.capacity += n
        return 0

    cdef inline char *state_at(self, size_t index) noexcept:
        return self.states.at(index)

    cdef int make_room(self, Py_ssize_t n) except -1:
        """Have n slots free."""
        while self.capacity - self.ledger.count < n:
            if self.growth == 0 or self.capacity == MOST_SLOTS:
                count = self.ledger.count
                taken = "all" if count == self.capacity else f"{count} of"
                raise RuntimeError(
                    f"{taken} {self.capacity} slots of this pool are taken; close streams, evict "
                    f"idle ones, or make the pool with a larger capacity= or with growth="
                )
            self.add_slots(min(self.growth, MOST_SLOTS - self.capacity))
        return 0

    cdef int64_t add(self, const void *state, int64_t steps) except -1:
        """Open a slot."""
        cdef fl_slot *slot
        self.make_room(1)
        slot = self.ledger.open(steps)
        memcpy(self.state_at(index_of(slot)), state, self.state_bytes())
        return slot.number

    cdef inline size_t state_bytes(self) noexcept:
        return self.network.state_bytes

    cdef int take(self, const int64_t *numbers, Py_ssize_t N) except -1:
        """Find the slots and states of a call, all of them open and different."""
        cdef Py_ssize_t i, fetched = FETCH_BYTES // self.states.row_bytes
        cdef fl_slot **taken
        cdef char **rows
        self.rows = at_least(self.rows, N * sizeof(void *))
        self.taken = at_least(self.taken, N * sizeof(void *))
        self.ledger.calls += 1
        rows, taken = <char **>self.rows.data, <fl_slot **>self.taken.data
        for i in range(N):
            taken[i] = self.ledger.take(numbers[i])
            rows[i] = self.state_at(index_of(taken[i]))
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
        for i in range(N):
            memset((<void **>self.rows.data)[i], 0, self.state_bytes())
            self.ledger.close((<fl_slot **>self.taken.data)[i])

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
            return self.ledger.idle(limit)
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
            numbers = self.ledger.idle(limit)
            self.close_taken(self.take_slots(numbers, &ndim))
            return numbers
        finally:
            fl_leave(&self.busy)

    @property
    def slots(self):
        """The slots of all open streams: int64 array (N,)."""
        self.enter()
        try:
            return self.ledger.numbers()
        finally:
            fl_leave(&self.busy)

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
            numbers = self.ledger.numbers() if slots is None else as_slots(slots)
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
        cdef Py_ssize_t N = given.size, i
        self.check_rows(block, N)
        self.enter()
        try:
            self.ledger.restore(given, steps, self.capacity)
            for i in range(N):
                memcpy(self.state_at((<const int64_t *>cnp.PyArray_DATA(given))[i] & INDEX_MASK),
                       <char *>cnp.PyArray_DATA(<cnp.ndarray>block) + i * self.state_bytes(),
                       self.state_bytes())
        finally:
            fl_leave(&self.busy)
