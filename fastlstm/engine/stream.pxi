# Stream: a network and the state of rows that step together.

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastlstm.kernels cimport fl_call, fl_output_steps, fl_plan, fl_run

# Rows of a stream: a pointer for each fits in half of what can be addressed.
MOST_ROWS = 2**58


cdef class Stream:
    """A network and the state of `batch_size` rows that step together; the base of fastlstm.Stream.

    Parameters
    ----------
    network : Network
    batch_size : int or None
        None: one unbatched row, arrays without the B axis.
    """

    cdef readonly Network network
    cdef readonly object batch_size
    cdef Py_ssize_t rows                # B
    cdef Buffer state_block             # real (B, state_size)
    cdef Buffer state_rows              # (B,) pointers into it
    cdef Buffer scratch
    cdef fl_plan plan
    cdef fl_call call                   # of a step: all set but x, tokens and y
    cdef uint64_t busy
    cdef object __weakref__
    cdef readonly int64_t steps         # made since it was made, or all rows were reset
    cdef bint release                   # whether a step releases the GIL
    cdef bint keeps_steps
    cdef int x_ndim, y_ndim
    cdef cnp.npy_intp x_shape[2]
    cdef cnp.npy_intp y_shape[2]
    cdef int64_t token

    def __cinit__(self, Network network, batch_size=None, *args, **kwargs):
        cdef size_t row = network.model.state_size * network.kernel.real_size
        cdef Py_ssize_t b, B
        if batch_size is not None:
            batch_size = as_count("batch_size", batch_size, 1)
            if batch_size > MOST_ROWS:
                raise MemoryError(f"a stream of {batch_size} rows")
        B = 1 if batch_size is None else batch_size
        self.network = network
        self.batch_size = batch_size
        self.rows = B
        if row and <size_t>B > (<size_t>-1) // 2 // row:
            raise MemoryError(f"a stream of {batch_size} rows")
        self.state_block = Buffer(row * B)
        self.state_rows = Buffer(B * sizeof(void *))
        for b in range(B):
            (<void **>self.state_rows.data)[b] = self.state_block.data + b * row
        self.start()
        self.keeps_steps = network.keeps_steps
        network.make_plan(1, B, &self.plan)
        self.scratch = Buffer(self.plan.bytes)
        self.release = network.releases_gil(1, B)
        self.call.T, self.call.B = 1, B
        self.call.state = <void *const *>self.state_rows.data
        self.call.plan = &self.plan
        self.call.scratch = self.scratch.data
        self.call.x_b = 1 if network.model.takes_tokens else network.input_size
        self.call.y_b = network.output_size
        cdef bint batched = batch_size is not None
        self.x_shape[0] = self.y_shape[0] = B
        self.x_shape[batched] = network.input_size
        self.y_shape[batched] = network.output_size
        self.x_ndim = batched + (not network.model.takes_tokens)
        self.y_ndim = batched + 1

    cdef void start(self) noexcept:
        cdef Py_ssize_t b
        for b in range(self.rows):
            self.start_row(b)

    cdef void start_row(self, Py_ssize_t b) noexcept:
        """Put a row where each sequence starts."""
        memcpy((<void **>self.state_rows.data)[b], cnp.PyArray_DATA(self.network.initial),
               self.network.model.state_size * self.network.kernel.real_size)

    cdef size_t output_steps(self, size_t T) noexcept:
        """Rows that the next T steps give."""
        if self.keeps_steps:
            return T
        return fl_output_steps(&self.network.model, self.network.kernel, T, False,
                               self.state_block.data)

    cdef int enter(self) except -1:
        cdef fl_entry entry = fl_enter(&self.busy)
        if entry != FL_ENTERED:
            raise not_entered(
                entry, "Stream",
                "this Stream is in use by another thread; one belongs to one thread at a time: "
                "give each thread its own with model.stream() or stream.clone()",
                "make another with model.stream(), and load what was saved")
        return 0

    def step(self, x, *, out=None):
        """Advance every row by one step.

        Parameters
        ----------
        x : array (I,) or (B, I) of the model's dtype, or integer tokens () or (B,)
            The input.
        out : array (O,) or (B, O) of the model's dtype, optional
            Where to write the output: then nothing is allocated.

        Returns
        -------
        array (O,) or (B, O), or None
            None for a step that completes no output, of a model with a convolution over time that
            is strided or not padded; `out` is then left as it was.

        Raises
        ------
        TypeError, ValueError
            If an array is of another dtype or shape, or a token is out of range.
        RuntimeError
            If another thread uses this stream.
        """
        cdef cnp.ndarray array, result = None
        cdef bint gives
        self.enter()
        try:
            gives = self.keeps_steps or self.output_steps(1) > 0
            if self.network.model.takes_tokens:
                array = tokens_of(self.network, x, self.x_ndim, self.x_shape, &self.token)
                if array is None:
                    self.call.tokens = &self.token
                else:
                    self.call.tokens = <const int64_t *>cnp.PyArray_DATA(array)
            else:
                array = features_of(self.network, x, self.x_ndim, self.x_shape)
                self.call.x = cnp.PyArray_DATA(array)
            if out is not None:
                result = output_of(self.network, out, self.y_ndim, self.y_shape, array)
            elif gives:
                result = cnp.PyArray_EMPTY(self.y_ndim, self.y_shape, self.network.type_num, 0)
            self.call.y = NULL if result is None else cnp.PyArray_DATA(result)
            if self.release:
                with nogil:
                    fl_run(self.network.kernel, &self.network.model, &self.call,
                           self.network.team)
            else:
                fl_run(self.network.kernel, &self.network.model, &self.call, self.network.team)
            self.steps += 1
            if result is None or not gives:
                return None
            return result if out is None else out
        finally:
            fl_leave(&self.busy)

    def run(self, x, *, out=None):
        """Advance every row by a block of steps.

        Parameters
        ----------
        x : array (T, I) or (T, B, I) of the model's dtype, or integer tokens (T,) or (T, B)
            The input.
        out : array (T', O) or (T', B, O) of the model's dtype, optional
            Where to write the output.

        Returns
        -------
        array (T', O) or (T', B, O)
            T' is T, but for models with convolutions over time that are strided or not padded.

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
        cdef cnp.ndarray array, result
        cdef fl_call call
        cdef cnp.npy_intp y_shape[3]
        cdef int i
        self.enter()
        try:
            shape = (None, *as_tuple(self.x_ndim, self.x_shape))
            memset(&call, 0, sizeof(call))
            if self.network.model.takes_tokens:
                array = as_tokens(x, shape, self.network.input_size)
                call.tokens = <const int64_t *>cnp.PyArray_DATA(array)
            else:
                array = as_features(x, self.network.dtype, shape)
                call.x = cnp.PyArray_DATA(array)
            y_shape[0] = self.output_steps(array.shape[0])
            for i in range(self.y_ndim):
                y_shape[i + 1] = self.y_shape[i]
            if out is None:
                result = cnp.PyArray_EMPTY(
                    self.y_ndim + 1, y_shape, self.network.type_num, 0)
            else:
                result = output_of(self.network, out, self.y_ndim + 1, y_shape, array)
            call.T, call.B = array.shape[0], self.rows
            call.x_b, call.y_b = self.call.x_b, self.call.y_b
            call.x_t, call.y_t = call.x_b * self.rows, call.y_b * self.rows
            call.y = cnp.PyArray_DATA(result)
            call.state = self.call.state
            if call.T:
                try:
                    self.network.execute(&call)
                finally:
                    self.steps += call.done
                self.call.ran = call.ran
            return result if out is None else out
        finally:
            fl_leave(&self.busy)

    def reset(self, rows=None):
        """Put the state of every row, or of some, where each sequence starts.

        Parameters
        ----------
        rows : boolean array (B,), optional
            Which ones; all by default.

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
        self.enter()
        try:
            if rows is None:
                self.start()
                self.steps = 0
                return
            if self.batch_size is None:
                raise ValueError("rows are those of a batch; this stream has none: call reset()")
            mask = as_mask("rows", rows, (self.rows,))
            if not self.keeps_steps:
                raise ValueError(
                    "this model does not give an output for every step, so that rows that start at "
                    "different times give theirs at different times; expected reset() of all rows, "
                    "or streams of a pool"
                )
            for b in range(self.rows):
                if (<const char *>cnp.PyArray_DATA(mask))[b]:
                    self.start_row(b)
        finally:
            fl_leave(&self.busy)

    @property
    def isa_of_last_step(self):
        """Name that the kernel which ran last wrote itself; None before the first step."""
        return None if self.call.ran == NULL else self.call.ran.decode()

    cdef cnp.ndarray state_view(self):
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = self.rows, self.network.model.state_size
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
            (<object>self.state_view())[...] = block
            if steps is not None:
                self.steps = steps
        finally:
            fl_leave(&self.busy)
