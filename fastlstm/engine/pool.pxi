# Pool: calls that step any of many streams together.

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastlstm cimport fl_call, fl_rows

# Bytes of the blocks in which a list of arrays passes: each step of a block shares its reading of
# the weights, and a long array among short ones takes no memory for theirs.
cdef size_t BLOCK_BYTES = 1 << 20


cdef struct fl_part:
    const char *x    # what is left of an array of a list, and of its output
    char *y
    void *state
    fl_slot *slot
    size_t left      # steps
    size_t steps, outputs  # of a block


cdef class Pool(Slots):
    """Many streams of a network, any of which step together; the base of fastlstm.Pool.

    Parameters are those of Slots.
    """

    cdef Buffer lengths             # (N,) size_t
    cdef Buffer parts               # (N,) fl_part: the arrays of a list
    cdef Buffer active              # (N,) pointers to the states of those that go on
    cdef Buffer x, y                # (N, block, I or O) of them
    cdef Buffer counts              # (outputs, N) rows that a call gives
    cdef Places places
    cdef Scratch scratch
    cdef size_t turn                # steps run before
    cdef Packed prepared_by         # as what the network was packed; None: there is no memory
    cdef Pages prepared             # what of the next step is made before, for each index
    cdef Buffer prepared_rows       # (N,) pointers into it

    def __cinit__(self, Network network, *args, **kwargs):
        self.lengths = self.parts = self.active = self.x = self.y = self.counts = Buffer(0)
        self.prepared_rows = Buffer(0)
        self.places, self.scratch = Places(network), Scratch()

    cdef int run_call(self, fl_call *call, void **states) except -1:
        """Run a call whose T, B and lengths are set, of streams in these states (B,).

        Never by a BLAS, whose sums depend on the number of rows.
        """
        cdef Network network = self.network
        self.scratch.fit(network, network.packed, call.T, call.B)
        call.inputs, call.outputs = self.places.inputs, self.places.outputs
        call.states = <void *const *>states
        if self.prepared_by is not self.scratch.packed:
            call.prepared = NULL
        call.turn = self.turn
        network.run_ready(call, self.scratch)
        self.turn = call.turn
        return 0

    cdef void count_steps(self, size_t N, size_t T, const size_t *lengths) noexcept:
        cdef double now = monotonic()
        cdef fl_slot **taken = <fl_slot **>self.taken.data
        cdef size_t i
        for i in range(N):
            taken[i].steps += T if lengths == NULL else min(lengths[i], T)
            taken[i].used = now
            taken[i].made = 0

    cdef const size_t *count_rows(self, void **states, size_t N, size_t T, const size_t *lengths,
                                  bint ending=False) except NULL:
        """Rows (outputs, N) of the next steps of streams in these states (N,), or of the end."""
        cdef fl_call call
        memset(&call, 0, sizeof(call))
        call.T, call.B, call.lengths = T, N, lengths
        self.counts = at_least(self.counts, (self.network.n_outputs * N + 1) * sizeof(size_t))
        if N:
            self.network.count_into(&call, states, <size_t *>self.counts.data, ending,
                                    None if ending else self.scratch)
        return <const size_t *>self.counts.data

    cdef size_t *fill_lengths(self, size_t N, size_t T) except NULL:
        cdef size_t i
        self.lengths = at_least(self.lengths, N * sizeof(size_t))
        for i in range(N):
            (<size_t *>self.lengths.data)[i] = T
        return <size_t *>self.lengths.data

    def step(self, slots, x, *, out=None):
        """Advance some streams by one step each, in one call.

        Parameters
        ----------
        slots : int64 array (N,), or int
            Different ones, in any order.
        x : array (N, I) of the model's dtype, or integer tokens (N,); for one slot, without N
            The input of each of them; of a model with several, a mapping of names to arrays.
        out : array (N, O) or (O,) of the model's dtype, optional
            Where to write the output; of a model with several, a mapping of some or all of them.

        Returns
        -------
        array (N, O) or (O,), or a mapping of names to these
            Zeros for a stream whose step completes no row, see :meth:`output_steps`.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice, an array is of another dtype or shape, or a token
            is out of range; if a step may give several rows of an output: then call run. No stream
            has made a step then.
        RuntimeError
            If another thread uses this pool.
        """
        cdef Network network = self.network
        cdef cnp.npy_intp shape[MOST_AXES]
        cdef int ndim = 0
        cdef Py_ssize_t N, streams
        cdef Port port
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            streams = N if ndim else NO_AXIS
            if not network.one_row_a_step:
                name = [port.name for port in network.outputs if port.step_rows != 1][0]
                raise ValueError(f"a step may give several rows of output {name!r}; expected run "
                                 f"of a block of steps")
            if network.is_single and not isinstance(x, dict):
                x = self.places.read_step(x, shape_of(network.x, NO_AXIS, streams, shape), shape)
                result = self.places.write_step(out, shape_of(network.y, NO_AXIS, streams, shape),
                                                shape, x, not network.keeps_steps)
                self.run_step(N)
                return result
            arrays = self.places.read(x, NO_AXIS, streams)
            results = self.places.write(out, [NO_AXIS] * network.n_outputs, streams, arrays,
                                        not network.keeps_steps)
            self.run_step(N)
            return self.places.named(results)
        finally:
            fl_leave(&self.busy)

    cdef int run_step(self, Py_ssize_t N) except -1:
        """Run a step of the streams taken, whose rows are in their places."""
        cdef fl_call call
        cdef const size_t *counts
        cdef size_t i
        if N == 0:
            return 0
        memset(&call, 0, sizeof(call))
        call.T, call.B = 1, N
        if self.prepared_by is not None:
            call.prepared = self.find_prepared(N)
        if not self.network.keeps_steps:
            call.lengths = self.fill_lengths(N, 1)
            counts = self.count_rows(<void **>self.rows.data, N, 1, NULL)
            for i in range(self.network.n_outputs * <size_t>N):
                if counts[i] > 1:
                    raise several_rows(self.network.outputs[i // <size_t>N])
        self.run_call(&call, <void **>self.rows.data)
        self.count_steps(N, 1, NULL)
        return 0

    def prepare(self, slots):
        """Make what of the next step of some streams does not need its input.

        As :meth:`fastlstm.Stream.prepare`: the next :meth:`step` of each, in whatever company, then
        reads the weights of the input only, and gives the same bits. What was made is dropped by
        :meth:`step`, :meth:`run`, :meth:`reset` and :meth:`set_state`; a stream from :meth:`fork`
        has none.

        Parameters
        ----------
        slots : int64 array (N,), or int
            Different ones, in any order. Each takes memory when it is first prepared.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice.
        RuntimeError
            If another thread uses this pool.
        MemoryError
            If there is no memory for it.
        """
        cdef int ndim = 0
        cdef Py_ssize_t N, i
        cdef Packed packed
        cdef fl_call call
        cdef fl_slot **taken
        cdef void **rows
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            packed = self.network.packed
            self.scratch.fit(self.network, packed, 1, N)
            if self.prepared_by is not packed:
                self.prepared_by = None
                self.prepared = Pages(max(fl_prepared_size(packed.model), <size_t>64))
            self.prepared.resize(self.capacity)
            self.prepared_by = packed
            self.prepared_rows = at_least(self.prepared_rows, N * sizeof(void *))
            taken, rows = <fl_slot **>self.taken.data, <void **>self.prepared_rows.data
            for i in range(N):
                rows[i] = self.prepared.at(index_of(taken[i]))
                if not taken[i].made:
                    fl_drop(rows[i])
            memset(&call, 0, sizeof(call))
            call.B, call.turn = N, self.turn
            call.states = <void *const *>self.rows.data
            call.prepared = <void *const *>rows
            prepare_states(self.network, &call, self.scratch)
            for i in range(N):
                taken[i].made = 1
        finally:
            fl_leave(&self.busy)

    cdef void *const *find_prepared(self, Py_ssize_t N) except NULL:
        """Where it is of the streams taken, (N,), or NULL for those that have none."""
        cdef fl_slot **taken = <fl_slot **>self.taken.data
        cdef void **rows
        cdef Py_ssize_t i
        self.prepared_rows = at_least(self.prepared_rows, N * sizeof(void *))
        rows = <void **>self.prepared_rows.data
        for i in range(N):
            rows[i] = NULL
            if taken[i].made:
                rows[i] = self.prepared.at(index_of(taken[i]))
        return <void *const *>rows

    def run(self, slots, x, lengths=None, *, out=None):
        """Advance some streams by a block of steps each, in one call.

        Parameters
        ----------
        slots : int64 array (N,), or int
            Different ones, in any order.
        x : array (T, N, I) or tokens (T, N), or a list of N arrays (T_n, I) or (T_n,)
            The input of each of them; (T, I) or (T,) for one slot that is an int. Of a model with
            several inputs, a mapping of their names to arrays; lists are for one.
        lengths : integer array (N,), optional
            Steps of each stream, from 0 to T. What lies behind them in `x` is not looked at.
        out : array (T', N, O) or (T', O), optional
            Where to write the output; as np.empty makes it, or ``a.swapaxes(0, 1)`` of an array
            (N, T', O), with room between its rows or not. `x` may lie in any such way. Of a model
            with several outputs, a mapping of some or all of them.

        Returns
        -------
        array (T', N, O) or (T', O), or list of N arrays (T_n', O), or a mapping of names to arrays
            Zeros behind the rows that a stream gives. These are as many as its steps, and T' is T,
            but for models that give more or fewer rows than they read, or late:
            :meth:`output_steps` tells, and T' is that of the stream with the most.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice, an array is of another dtype or shape, a length
            or a token is out of range. No stream has made a step then.
        RuntimeError
            If another thread uses this pool.
        BaseException
            Whatever a signal's handler raises during the call, as KeyboardInterrupt. Each stream
            has then made a whole number of its steps, which :meth:`steps` tells.
        """
        cdef int ndim = 0
        cdef Py_ssize_t N
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            if ndim and isinstance(x, (list, tuple)):
                if lengths is not None or out is not None:
                    raise TypeError(
                        "x is a list, whose arrays have lengths of their own and give new arrays; "
                        "expected neither lengths= nor out= with it"
                    )
                return self.run_list(tuple(x), N)
            return self.run_block(x, ndim, N, lengths, out)
        finally:
            fl_leave(&self.busy)

    cdef object run_block(self, x, int ndim, Py_ssize_t N, lengths, out):
        cdef Network network = self.network
        cdef Py_ssize_t streams = N if ndim else NO_AXIS
        cdef cnp.ndarray steps
        cdef Port port
        cdef fl_call call
        cdef list arrays, results
        arrays = self.places.read(x, ANY, streams, lengths is None)
        memset(&call, 0, sizeof(call))
        call.T, call.B = (<cnp.ndarray>arrays[0]).shape[0], N
        if lengths is not None:
            if ndim == 0:
                raise TypeError("lengths are those of several slots; slots is a single number")
            steps = as_lengths(lengths, call.T, N)
            self.lengths = at_least(self.lengths, N * sizeof(size_t))
            memcpy(self.lengths.data, cnp.PyArray_DATA(steps), N * sizeof(size_t))
            call.lengths = <const size_t *>self.lengths.data
            for port, array in zip(network.moving, arrays):
                if port.tokens:
                    check_tokens(array, port.tokens, steps)
        elif not network.keeps_steps and N:
            call.lengths = self.fill_lengths(N, call.T)
        results = self.places.write(out, self.most_rows(N, call.T), streams, arrays,
                                    call.lengths != NULL, ndim != 0)
        if N and call.T:
            try:
                self.run_call(&call, <void **>self.rows.data)
            finally:
                self.count_steps(N, call.steps_done, call.lengths)
        return self.places.named(results)

    cdef list most_rows(self, size_t N, size_t T):
        """Of each output the most rows that the next `lengths` steps of any stream taken give."""
        cdef const size_t *counts
        cdef size_t i, n
        if self.network.keeps_steps:
            return [T] * self.network.n_outputs
        counts = self.count_rows(<void **>self.rows.data, N, T, <const size_t *>self.lengths.data)
        return [max([counts[i * N + n] for n in range(N)], default=0)
                for i in range(self.network.n_outputs)]

    cdef list run_list(self, tuple x, Py_ssize_t N):
        cdef Network network = self.network
        cdef Port port = network.x
        cdef size_t item = network.dtype.itemsize
        cdef size_t x_bytes = port.count * (8 if port.tokens else item)
        cdef size_t y_bytes = network.y.count * item
        cdef cnp.npy_intp shape[MOST_AXES]
        cdef list given = [], made = []
        cdef cnp.ndarray array
        cdef fl_part *parts
        cdef size_t longest = 0, block, i, n
        cdef int ndim
        cdef const size_t *counts = NULL
        if not network.is_single:
            raise TypeError("x is a list, which is for a model of one input and one output; "
                            "expected a mapping of names to arrays (T, N, ...), and lengths=")
        if len(x) != N:
            raise ValueError(f"x is a list of {len(x)} arrays; expected one for each of {N} slots")
        for i in range(<size_t>N):
            if not port.tokens and is_block(x[i], network.type_num, port.ndim, port.axes + 2):
                array = <cnp.ndarray>x[i]
            else:
                array = network.as_rows(port, x[i], (None,))
            given.append(array)
            longest = max(longest, <size_t>array.shape[0])
        self.lengths = at_least(self.lengths, N * sizeof(size_t))
        for i in range(<size_t>N):
            (<size_t *>self.lengths.data)[i] = len(given[i])
        if not network.keeps_steps:
            counts = self.count_rows(<void **>self.rows.data, N, longest,
                                     <const size_t *>self.lengths.data)
        for i in range(<size_t>N):
            n = len(given[i]) if counts == NULL else counts[i]
            ndim = shape_of(network.y, n, NO_AXIS, shape)
            made.append(cnp.PyArray_EMPTY(ndim, shape, network.type_num, 0))
        if longest == 0:
            return made
        block = min(longest, max(BLOCK_BYTES // (max(x_bytes, y_bytes) * N), <size_t>1))
        self.x = at_least(self.x, N * block * x_bytes)
        self.parts = at_least(self.parts, N * sizeof(fl_part))
        self.active = at_least(self.active, N * sizeof(void *))
        parts = <fl_part *>self.parts.data
        for i in range(<size_t>N):
            array = given[i]
            parts[i].x, parts[i].left = <char *>cnp.PyArray_DATA(array), array.shape[0]
            parts[i].y = <char *>cnp.PyArray_DATA(<cnp.ndarray>made[i])
            parts[i].state = (<void **>self.rows.data)[i]
            parts[i].slot = (<fl_slot **>self.taken.data)[i]
        while longest > 0:
            self.run_parts(N, min(block, longest), x_bytes, y_bytes)
            longest -= min(block, longest)
            if longest:
                check_signals()
        return made

    cdef int run_parts(self, size_t N, size_t block, size_t x_bytes, size_t y_bytes) except -1:
        """Run the next steps of a list's arrays, at most `block` of each."""
        cdef Network network = self.network
        cdef fl_part *parts = <fl_part *>self.parts.data
        cdef void **active = <void **>self.active.data
        cdef size_t *lengths = <size_t *>self.lengths.data
        cdef fl_rows *x
        cdef fl_rows *y
        cdef fl_call call
        cdef size_t i, n = 0, most = 0
        cdef double now
        cdef bint even = network.keeps_steps
        cdef const size_t *counts = lengths
        memset(&call, 0, sizeof(call))
        for i in range(N):
            parts[i].steps = min(parts[i].left, block)
            if parts[i].steps == 0:
                continue
            memcpy(self.x.data + n * block * x_bytes, parts[i].x, parts[i].steps * x_bytes)
            active[n], lengths[n] = parts[i].state, parts[i].steps
            even = even and parts[i].steps == block
            n += 1
        if not network.keeps_steps:
            counts = self.count_rows(active, n, block, lengths)
        n = 0
        for i in range(N):
            if parts[i].steps:
                parts[i].outputs = counts[n]
                most = max(most, counts[n])
                n += 1
        self.y = at_least(self.y, n * most * y_bytes)
        call.T, call.B = block, n
        x, y = self.places.inputs, self.places.outputs
        x.data, x.t, x.b = self.x.data, network.x.count, network.x.count * block
        y.data, y.t, y.b = self.y.data, network.y.count, network.y.count * most
        if not even:
            call.lengths = lengths
        try:
            self.run_call(&call, active)
        finally:
            now = monotonic()
            for i in range(N):
                if parts[i].steps:
                    parts[i].slot.steps += min(parts[i].steps, call.steps_done)
                    parts[i].slot.used = now
                    parts[i].slot.made = 0
        n = 0
        for i in range(N):
            if parts[i].steps == 0:
                continue
            memcpy(parts[i].y, self.y.data + n * most * y_bytes, parts[i].outputs * y_bytes)
            parts[i].x += parts[i].steps * x_bytes
            parts[i].y += parts[i].outputs * y_bytes
            parts[i].left -= parts[i].steps
            n += 1
        return 0

    def flush(self, slot):
        """The rows that are due if a stream ends here; its state stays as it is.

        Parameters
        ----------
        slot : int

        Returns
        -------
        array (T', O), or a mapping of names to these
            As of :meth:`fastlstm.Stream.flush`.

        Raises
        ------
        TypeError, ValueError
            If it is no slot, or not open.
        RuntimeError
            If another thread uses this pool.
        """
        cdef Network network = self.network
        cdef fl_call call
        cdef const size_t *counts
        cdef int ndim = 0
        cdef size_t i
        self.enter()
        try:
            self.take_slots(slot, &ndim)
            if ndim:
                raise TypeError("slots is an array; expected the number of one stream, since each "
                                "may have other numbers of rows that are due")
            counts = self.count_rows(<void **>self.rows.data, 1, 0, NULL, True)
            results = self.places.write(None, [counts[i] for i in range(network.n_outputs)],
                                        NO_AXIS, [])
            memset(&call, 0, sizeof(call))
            call.B, call.outputs = 1, self.places.outputs
            network.flush_rows(&call, <void **>self.rows.data)
            return self.places.named(results)
        finally:
            fl_leave(&self.busy)

    def output_steps(self, slots, steps=1, *, output=None):
        """Rows that the next steps of each stream give.

        Parameters
        ----------
        slots : int64 array (N,), or int
        steps : int or integer array (N,), default 1
            How many steps.
        output : str, optional
            The name of an output; the first one, if not given.

        Returns
        -------
        int64 array (N,), or int
            As many as `steps`, but for models that give more or fewer rows than they read, or late.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice, `steps` are not integers from 0 on, or there is
            no such output.
        """
        cdef int ndim = 0
        cdef Py_ssize_t N, i
        cdef size_t number = 0
        cdef cnp.ndarray counts
        cdef const size_t *made
        names = [port.name for port in self.network.outputs]
        if output is not None:
            if output not in names:
                raise ValueError(f"output is {output!r}; expected one of "
                                 f"{', '.join(map(repr, names))}")
            number = names.index(output)
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            given = np.asarray(steps)
            if given.dtype.kind not in "iu" and given.size:
                raise TypeError(f"steps is of dtype {given.dtype}; expected integers")
            if given.ndim and given.shape != (N,) or given.ndim > ndim or (
                    given.size and not 0 <= given.min() <= given.max() < 2**63):
                raise ValueError(
                    f"steps is {steps!r:.80}; expected an integer from 0 on, or one a slot")
            counts = np.array(np.broadcast_to(given, (N,)), np.int64)
            if not self.network.keeps_steps and N:
                made = self.count_rows(<void **>self.rows.data, N, counts.max(),
                                       <const size_t *>cnp.PyArray_DATA(counts))
                for i in range(N):
                    (<int64_t *>cnp.PyArray_DATA(counts))[i] = made[number * <size_t>N + i]
            return counts if ndim else int(counts[0])
        finally:
            fl_leave(&self.busy)
