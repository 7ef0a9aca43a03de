# Stream: a network and the state of rows that step together.

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastlstm cimport fl_call, fl_run

# Rows of a stream: a pointer for each fits in half of what can be addressed.
MOST_ROWS = 2**58


cdef class Stream:
    """A network and the state of `batch_size` rows that step together; the base of fastlstm.Stream.

    Parameters
    ----------
    network : Network
    batch_size : int or None
        None: one unbatched row, arrays without the B axis.
    held : mapping of str to array (B, ...) or (...)
        Of every input that is held for a sequence.
    """

    cdef readonly Network network
    cdef readonly object batch_size
    cdef Py_ssize_t rows                # B
    cdef bint batched
    cdef list held                      # arrays (B, ...) of what is held
    cdef Buffer state_block             # real (B, state_size)
    cdef Buffer state_rows              # (B,) pointers into it
    cdef Places places
    cdef Scratch scratch
    cdef Buffer counts                  # (outputs, B) rows that a call gives
    cdef Packed prepared_by             # as what the network was packed; None: there is no memory
    cdef Buffer prepared                # (B, fl_prepared_size)
    cdef Buffer prepared_rows           # (B,) pointers into it
    cdef fl_call call                   # of a step: all set but the scratch
    cdef int x_ndim, y_ndim             # of the first input and output of a step
    cdef cnp.npy_intp x_shape[MOST_AXES]
    cdef cnp.npy_intp y_shape[MOST_AXES]
    cdef uint64_t busy
    cdef object __weakref__
    cdef readonly int64_t steps         # made since it was made, or all rows were reset
    cdef bint release                   # whether a step releases the GIL
    cdef bint ran

    def __cinit__(self, Network network, batch_size=None, held=None, *args, **kwargs):
        cdef size_t row = network.state_bytes
        cdef Py_ssize_t b, B
        if batch_size is not None:
            batch_size = as_count("batch_size", batch_size, 1)
            if batch_size > MOST_ROWS:
                raise MemoryError(f"a stream of {batch_size} rows")
        B = 1 if batch_size is None else batch_size
        self.network = network
        self.batch_size = batch_size
        self.batched = batch_size is not None
        self.rows = B
        if row and <size_t>B > (<size_t>-1) // 2 // row:
            raise MemoryError(f"a stream of {batch_size} rows")
        self.state_block = Buffer(row * B)
        self.state_rows = Buffer(B * sizeof(void *))
        for b in range(B):
            (<void **>self.state_rows.data)[b] = self.state_block.data + b * row
        self.held = network.held_of(held, B, self.batched)
        network.begin_rows(<void **>self.state_rows.data, B, self.held)
        self.places = Places(network)
        self.x_ndim = shape_of(network.x, NO_AXIS, self.batch(), self.x_shape)
        self.y_ndim = shape_of(network.y, NO_AXIS, self.batch(), self.y_shape)
        self.scratch = network.take_scratch(1, B)
        self.release = network.releases_gil(1, B)
        self.counts = Buffer(network.n_outputs * B * sizeof(size_t))
        self.call.struct_size = sizeof(fl_call)
        self.call.T, self.call.B = 1, B
        self.call.inputs, self.call.outputs = self.places.inputs, self.places.outputs
        self.call.states = <void *const *>self.state_rows.data
        self.call.threads = NULL if network.team == NULL else &network.threads

    @cython.final
    cdef inline int enter(self) except -1:
        cdef fl_entry entry = fl_enter(&self.busy)
        if entry != FL_ENTERED:
            raise not_entered(
                entry, "Stream",
                "this Stream is in use by another thread; one belongs to one thread at a time: "
                "give each thread its own with model.stream() or stream.clone()",
                "make another with model.stream(), and load what was saved")
        return 0

    @cython.final
    cdef inline Py_ssize_t batch(self) noexcept:
        """B, or NO_AXIS of a stream without it."""
        return self.rows if self.batched else NO_AXIS

    cdef const size_t *count_rows(self, size_t T, bint ending) except NULL:
        """Rows (outputs, B) that the next T steps give, or the end; of each batch row as many."""
        cdef fl_call call
        memset(&call, 0, sizeof(call))
        call.T, call.B = T, self.rows
        self.network.count_into(&call, <void **>self.state_rows.data, <size_t *>self.counts.data,
                                ending, self.scratch if T <= 1 else None)
        return <const size_t *>self.counts.data

    @cython.final
    cdef inline int run_step(self) except -1:
        cdef fl_error error
        cdef Packed packed = self.network.packed
        if self.scratch.packed is not packed:
            self.scratch.fit(self.network, packed, 1, self.rows)
        if self.prepared_by is not packed:
            self.call.prepared = NULL
        self.call.scratch = self.scratch.made
        if self.release:
            with nogil:
                error = fl_run(packed.model, &self.call)
        else:
            error = fl_run(packed.model, &self.call)
        if error != FL_OK:
            raise failed(error, NULL)
        self.steps += 1
        self.ran = True
        return 0

    def step(self, x, *, out=None):
        """Advance every row by one step.

        Parameters
        ----------
        x : array (I,) or (B, I) of the model's dtype, or integer tokens () or (B,)
            The input; of a model with several, a mapping of their names to arrays. What is held
            for a sequence is none of them.
        out : array (O,) or (B, O) of the model's dtype, optional
            Where to write the output: then nothing is allocated. Of a model with several, a
            mapping of names to arrays, of some or all of them.

        Returns
        -------
        array (O,) or (B, O), or None; or a mapping of names to these
            None for a step that completes no row, of a model that gives fewer rows than it reads,
            or late; `out` is then left as it was. Of an output with more rows than steps, an array
            (T', O) or (T', B, O).

        Raises
        ------
        TypeError, ValueError
            If an array is of another dtype or shape, or a token is out of range; if an output has
            neither as many rows as steps, nor fewer, nor a whole number for each: then call run.
        RuntimeError
            If another thread uses this stream.
        """
        cdef Network network = self.network
        cdef size_t rows = 1
        self.enter()
        try:
            if not (network.is_single and network.y.step_rows == 1) or isinstance(x, dict):
                return self.advance(x, out, True)
            if not network.keeps_steps:
                rows = self.count_rows(1, False)[0]
                if rows > 1:
                    raise several_rows(network.y)
            x = self.places.read_step(x, self.x_ndim, self.x_shape)
            result = self.places.write_step(out, self.y_ndim, self.y_shape, x, False)
            self.run_step()
            return result if rows else None
        finally:
            fl_leave(&self.busy)

    def prepare(self):
        """Make what of the next step does not need its input, while there is time for it.

        After a step all is known that is recurrent: the products of h of every recurrence along
        time, half of a step where its input is as wide as h. A step that finds them made reads the
        weights of the input only, and gives the same bits; one that does not makes them itself.
        This pays where time passes between inputs, and whoever sends one waits for the answer:
        between ticks, frames or packets. It saves no work in all.

        A second call before the next step does nothing. What was made is no part of a state: it is
        dropped by :meth:`step`, which alone uses it, by :meth:`run` and :meth:`reset`, and where a
        state is assigned or loaded; a clone has none.

        The first call takes memory, as many numbers for each row and layer as there are in its
        gates: 4 * hidden_size of an LSTM, in whole vectors. The product of the candidate of a GRU
        that resets before it is left to the step, and so is all of a recurrence in a loop, along
        positions, or with several rows a step.

        Raises
        ------
        RuntimeError
            If another thread uses this stream.
        MemoryError
            If there is no memory for it.
        """
        cdef Packed packed
        cdef fl_call call
        self.enter()
        try:
            packed = self.network.packed
            if self.scratch.packed is not packed:
                self.scratch.fit(self.network, packed, 1, self.rows)
            if self.prepared_by is not packed:
                self.take_prepared(packed)
            call = self.call
            prepare_states(self.network, &call, self.scratch)
        finally:
            fl_leave(&self.busy)

    cdef int take_prepared(self, Packed packed) except -1:
        """Have memory for what is made by a network that is packed so."""
        cdef size_t size = fl_prepared_size(packed.model)
        cdef Py_ssize_t b
        if size and <size_t>self.rows > (<size_t>-1) // 2 // size:
            raise MemoryError(f"what is prepared for {self.rows} rows")
        self.prepared_by, self.call.prepared = None, NULL
        self.prepared = Buffer(size * self.rows)
        self.prepared_rows = Buffer(self.rows * sizeof(void *))
        for b in range(self.rows):
            (<void **>self.prepared_rows.data)[b] = self.prepared.data + b * size
        self.call.prepared = <void *const *>self.prepared_rows.data
        self.prepared_by = packed
        return 0

    cdef void drop_prepared(self) noexcept:
        cdef Py_ssize_t b
        if self.call.prepared != NULL:
            for b in range(self.rows):
                fl_drop(self.call.prepared[b])

    def run(self, x, *, out=None):
        """Advance every row by a block of steps.

        Parameters
        ----------
        x : array (T, I) or (T, B, I) of the model's dtype, or integer tokens (T,) or (T, B)
            The input; of a model with several, a mapping of their names to arrays.
        out : array (T', O) or (T', B, O) of the model's dtype, optional
            Where to write the output; of a model with several, a mapping of some or all of them.

        Returns
        -------
        array (T', O) or (T', B, O), or a mapping of names to these
            T' is T, but for models that give more or fewer rows than they read, or late.

        Raises
        ------
        TypeError, ValueError
            If an array is of another dtype or shape, or a token is out of range.
        RuntimeError
            If another thread uses this stream.
        BaseException
            Whatever a signal's handler raises during the call, as KeyboardInterrupt. The stream has
            then made a whole number of the steps, which `steps` tells; their rows are in `out`.
        """
        self.enter()
        try:
            return self.advance(x, out, False)
        finally:
            fl_leave(&self.busy)

    def flush(self):
        """The rows that are due if the sequence ends here; the state stays as it is.

        Returns
        -------
        array (T', O) or (T', B, O), or a mapping of names to these
            What a model that waits for later rows still owes; no row of one that gives each at
            once.
        """
        cdef fl_call call
        self.enter()
        try:
            results = self.places.write(None, self.rows_of(0, True), self.batch(), [])
            memset(&call, 0, sizeof(call))
            call.B, call.outputs = self.rows, self.places.outputs
            self.network.flush_rows(&call, <void **>self.state_rows.data)
            return self.places.named(results)
        finally:
            fl_leave(&self.busy)

    cdef list rows_of(self, Py_ssize_t T, bint ending):
        """Of each output the rows that the next T steps give, or the end."""
        cdef const size_t *counts = NULL
        cdef size_t i
        if not ending and self.network.keeps_steps:
            return [T] * self.network.n_outputs
        counts = self.count_rows(T, ending)
        return [counts[i * <size_t>self.rows] for i in range(self.network.n_outputs)]

    cdef object advance(self, x, out, bint one):
        """Make a step, or a block of steps, of any model."""
        cdef Network network = self.network
        cdef list arrays, results, rows, axes
        cdef fl_call call
        cdef Port port
        cdef Py_ssize_t T
        arrays = self.places.read(x, NO_AXIS if one else ANY, self.batch())
        T = 1 if one else (<cnp.ndarray>arrays[0]).shape[0]
        rows = axes = self.rows_of(T, False)
        if one:
            for port, n in zip(network.outputs, rows):
                if port.step_rows == 0 or port.step_rows == 1 < n:
                    raise several_rows(port)
            axes = [NO_AXIS if port.step_rows == 1 else n for port, n in zip(network.outputs, rows)]
        results = self.places.write(out, axes, self.batch(), arrays)
        if one:
            self.run_step()
        elif T:
            call = self.call
            call.T, call.prepared = T, NULL
            self.drop_prepared()
            try:
                network.execute(&call)
            finally:
                self.steps += call.steps_done
                self.ran = True
        return self.places.named([None if axis == NO_AXIS and n == 0 else result
                                  for axis, n, result in zip(axes, rows, results)])

    def reset(self, rows=None, *, held=None):
        """Put the state of every row, or of some, where each sequence starts.

        Parameters
        ----------
        rows : boolean array (B,), optional
            Which ones; all by default.
        held : mapping of str to array (B, ...) or (...), optional
            New rows of what is held for a sequence, of all rows of the batch; those that they had,
            if not given.

        Raises
        ------
        TypeError
            If `rows` is not a boolean array: numbers of rows are not taken for a mask.
        ValueError
            If its shape is another, or the rows of this model must stay in step, because it does
            not give an output for every step.
        RuntimeError
            If another thread uses this stream.
        """
        cdef cnp.ndarray mask
        cdef Py_ssize_t b
        cdef list given
        self.enter()
        try:
            self.drop_prepared()
            given = self.held
            if held is not None:
                given = self.network.held_of(held, self.rows, self.batched)
            if rows is None:
                self.network.begin_rows(<void **>self.state_rows.data, self.rows, given)
                self.held = given
                self.steps = 0
                return
            if not self.batched:
                raise ValueError("rows are those of a batch; this stream has none: call reset()")
            mask = as_mask("rows", rows, (self.rows,))
            if not self.network.keeps_steps:
                raise ValueError(
                    "this model does not give an output for every step, so that rows that start at "
                    "different times give theirs at different times; expected reset() of all rows, "
                    "or streams of a pool"
                )
            for b in range(self.rows):
                if (<const char *>cnp.PyArray_DATA(mask))[b]:
                    self.network.begin_rows(<void **>self.state_rows.data + b, 1,
                                            [array[b:b + 1] for array in given])
                    for old, new in zip(self.held, given):
                        old[b] = new[b]
        finally:
            fl_leave(&self.busy)

    @property
    def isa_of_last_step(self):
        """Name of the instruction set that ran last; None before the first step."""
        return self.network.isa if self.ran else None

    cdef cnp.ndarray state_view(self):
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = self.rows, self.network.state_size
        return cnp.PyArray_SimpleNewFromData(2, shape, self.network.type_num, self.state_block.data)

    def read_block(self):
        """A copy of the state of all rows: array (B, state_size)."""
        self.enter()
        try:
            return self.state_view().copy()
        finally:
            fl_leave(&self.busy)

    def write_block(self, block, steps=None):
        """Replace the state of all rows by a (B, state_size) array of the model's dtype.

        With `steps`, so many are then counted as made.
        """
        self.enter()
        try:
            self.drop_prepared()
            (<object>self.state_view())[...] = block
            if steps is not None:
                self.steps = steps
        finally:
            fl_leave(&self.busy)

    def held_values(self):
        """A copy of what is held for the sequence, by name."""
        return {port.name: (array if self.batched else array[0]).copy()
                for port, array in zip(self.network.held, self.held)}
