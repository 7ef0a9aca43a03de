# Pool: calls that step any of many streams together.

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastlstm.kernels cimport fl_call, fl_output_steps, fl_plan

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
    cdef Buffer scratch
    cdef fl_plan plan
    cdef size_t planned_T, planned_N
    cdef size_t turn                # steps run before

    def __cinit__(self, *args, **kwargs):
        self.lengths = self.parts = self.active = self.x = self.y = self.scratch = Buffer(0)

    cdef int ready(self, fl_call *call, void **states) except -1:
        """Plan a call whose T and B are set, of streams in these states (B,)."""
        if self.planned_T != call.T or self.planned_N != call.B:
            self.planned_N = 0
            self.network.make_plan(call.T, call.B, &self.plan)
            self.planned_T, self.planned_N = call.T, call.B
        self.scratch = at_least(self.scratch, self.plan.bytes)
        call.plan = &self.plan
        call.scratch = self.scratch.data
        call.state = <void *const *>states
        return 0

    cdef int run_call(self, fl_call *call) except -1:
        """Run what is ready. Never by a BLAS, whose sums depend on the number of rows."""
        call.turn = self.turn
        self.network.run_planned(call)
        self.turn = call.turn
        return 0

    cdef void count_steps(self, size_t N, size_t T, const size_t *lengths) noexcept:
        cdef double now = monotonic()
        cdef fl_slot **taken = <fl_slot **>self.taken.data
        cdef size_t i
        for i in range(N):
            taken[i].steps += T if lengths == NULL else min(lengths[i], T)
            taken[i].used = now

    cdef inline size_t outputs_of(self, size_t i, size_t T) noexcept:
        """Rows that the next T steps of the i-th slot taken give."""
        if self.network.keeps_steps:
            return T
        return fl_output_steps(&self.network.model, self.network.kernel, T, False,
                               (<void **>self.rows.data)[i])

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
            The input of each of them.
        out : array (N, O) or (O,) of the model's dtype, optional
            Where to write the output.

        Returns
        -------
        array (N, O) or (O,)
            Zeros for a stream whose step completes no output, see :meth:`output_steps`.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice, an array is of another dtype or shape, or a token
            is out of range. No stream has made a step then.
        RuntimeError
            If another thread uses this pool.
        """
        cdef Network network = self.network
        cdef cnp.ndarray array = None, result
        cdef int64_t token
        cdef fl_call call
        cdef cnp.npy_intp x_shape[2]
        cdef cnp.npy_intp y_shape[2]
        cdef int ndim = 0
        cdef Py_ssize_t N
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            memset(&call, 0, sizeof(call))
            x_shape[0] = y_shape[0] = N
            x_shape[ndim], y_shape[ndim] = network.input_size, network.output_size
            if network.model.takes_tokens:
                call.x_b = 1
                array = tokens_of(network, x, ndim, x_shape, &token)
                call.tokens = &token
                if array is not None:
                    call.tokens = <const int64_t *>cnp.PyArray_DATA(array)
            else:
                array = features_of(network, x, ndim + 1, x_shape)
                call.x = cnp.PyArray_DATA(array)
                call.x_b = network.input_size
            if out is None:
                result = cnp.PyArray_EMPTY(ndim + 1, y_shape, network.type_num, 0)
            else:
                result = output_of(network, out, ndim + 1, y_shape, array)
            if N == 0:
                return result if out is None else out
            call.T, call.B = 1, N
            call.y, call.y_b = cnp.PyArray_DATA(result), network.output_size
            if not network.keeps_steps:
                memset(call.y, 0, cnp.PyArray_NBYTES(result))
                call.lengths = self.fill_lengths(N, 1)
            self.ready(&call, <void **>self.rows.data)
            self.run_call(&call)
            self.count_steps(N, 1, NULL)
            return result if out is None else out
        finally:
            fl_leave(&self.busy)

    def run(self, slots, x, lengths=None, *, out=None):
        """Advance some streams by a block of steps each, in one call.

        Parameters
        ----------
        slots : int64 array (N,), or int
            Different ones, in any order.
        x : array (T, N, I) or tokens (T, N), or a list of N arrays (T_n, I) or (T_n,)
            The input of each of them; (T, I) or (T,) for one slot that is an int.
        lengths : integer array (N,), optional
            Steps of each stream, from 0 to T. What lies behind them in `x` is not looked at.
        out : array (T', N, O) or (T', O), optional
            Where to write the output; as np.empty makes it, or ``a.swapaxes(0, 1)`` of an array
            (N, T', O), with room between its rows or not. `x` may lie in any such way.

        Returns
        -------
        array (T', N, O) or (T', O), or list of N arrays (T_n', O)
            Zeros behind the rows that a stream gives. These are as many as its steps, and T' is T,
            but for models with strided or delayed convolutions: :meth:`output_steps` tells, and T'
            is that of the stream with the most.

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

    cdef run_block(self, x, int ndim, Py_ssize_t N, lengths, out):
        cdef Network network = self.network
        cdef bint takes_tokens = network.model.takes_tokens
        cdef cnp.ndarray array, result, steps
        cdef fl_call call
        cdef cnp.npy_intp y_shape[3]
        cdef cnp.npy_intp item
        cdef size_t i, most = 0
        rows = (None, N) if ndim else (None,)
        memset(&call, 0, sizeof(call))
        if takes_tokens:
            array = as_tokens(x, rows, network.input_size, lengths is None)
            call.tokens = <const int64_t *>cnp.PyArray_DATA(array)
        else:
            array = as_features(x, network.dtype, (*rows, network.input_size), False)
            call.x = cnp.PyArray_DATA(array)
        item = cnp.PyArray_ITEMSIZE(array)
        call.x_t, call.x_b = array.strides[0] // item, array.strides[ndim] // item
        call.T, call.B = array.shape[0], N
        if lengths is not None:
            if ndim == 0:
                raise TypeError("lengths are those of several slots; slots is a single number")
            steps = as_lengths(lengths, call.T, N)
            call.lengths = <const size_t *>cnp.PyArray_DATA(steps)
            if takes_tokens:
                check_tokens(array, network.input_size, steps)
        elif not network.keeps_steps and N:
            call.lengths = self.fill_lengths(N, call.T)
        most = call.T if network.keeps_steps else 0
        for i in range(<size_t>(0 if network.keeps_steps else N)):
            most = max(most, self.outputs_of(i, call.lengths[i]))
        y_shape[0], y_shape[1], y_shape[ndim + 1] = most, N, network.output_size
        if out is None:
            result = cnp.PyArray_EMPTY(ndim + 2, y_shape, network.type_num, 0)
        else:
            result = output_of(network, out, ndim + 2, y_shape, array, True)
        if call.lengths != NULL:
            (<object>result).fill(0)
        if N and call.T:
            item = network.kernel.real_size
            call.y = cnp.PyArray_DATA(result)
            call.y_t, call.y_b = result.strides[0] // item, result.strides[ndim] // item
            self.ready(&call, <void **>self.rows.data)
            try:
                self.run_call(&call)
            finally:
                self.count_steps(N, call.done, call.lengths)
        return result if out is None else out

    cdef list run_list(self, tuple x, Py_ssize_t N):
        cdef Network network = self.network
        cdef bint takes_tokens = network.model.takes_tokens
        cdef size_t item = network.kernel.real_size
        cdef size_t x_bytes = 8 if takes_tokens else network.input_size * item
        cdef size_t y_bytes = network.output_size * item
        cdef cnp.npy_intp y_shape[2]
        cdef list given = [], made = []
        cdef cnp.ndarray array
        cdef fl_part *parts
        cdef size_t longest = 0, block, i
        if len(x) != N:
            raise ValueError(f"x is a list of {len(x)} arrays; expected one for each of {N} slots")
        y_shape[1] = network.output_size
        for i in range(<size_t>N):
            if takes_tokens:
                array = as_tokens(x[i], (None,), network.input_size)
            elif is_block(x[i], network.type_num, network.input_size):
                array = <cnp.ndarray>x[i]
            else:
                array = as_features(x[i], network.dtype, (None, network.input_size))
            y_shape[0] = self.outputs_of(i, array.shape[0])
            given.append(array)
            made.append(cnp.PyArray_EMPTY(2, y_shape, network.type_num, 0))
            longest = max(longest, <size_t>array.shape[0])
        if longest == 0:
            return made
        block = min(longest, max(BLOCK_BYTES // (max(x_bytes, y_bytes) * N), <size_t>1))
        self.x = at_least(self.x, N * block * x_bytes)
        self.y = at_least(self.y, N * block * y_bytes)
        self.parts = at_least(self.parts, N * sizeof(fl_part))
        self.active = at_least(self.active, N * sizeof(void *))
        self.lengths = at_least(self.lengths, N * sizeof(size_t))
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
        cdef fl_call call
        cdef size_t i, n = 0
        cdef double now
        cdef bint even = network.keeps_steps
        memset(&call, 0, sizeof(call))
        for i in range(N):
            parts[i].steps = min(parts[i].left, block)
            parts[i].outputs = parts[i].steps if network.keeps_steps else fl_output_steps(
                &network.model, network.kernel, parts[i].steps, False, parts[i].state)
            if parts[i].steps == 0:
                continue
            memcpy(self.x.data + n * block * x_bytes, parts[i].x, parts[i].steps * x_bytes)
            active[n], lengths[n] = parts[i].state, parts[i].steps
            even = even and parts[i].steps == block
            n += 1
        call.T, call.B = block, n
        call.x_t = x_bytes // (8 if network.model.takes_tokens else network.kernel.real_size)
        call.y_t = network.output_size
        call.x_b, call.y_b = call.x_t * block, call.y_t * block
        call.x, call.tokens, call.y = self.x.data, NULL, self.y.data
        if network.model.takes_tokens:
            call.x, call.tokens = NULL, <const int64_t *>self.x.data
        if not even:
            call.lengths = lengths
        self.ready(&call, active)
        try:
            self.run_call(&call)
        finally:
            now = monotonic()
            for i in range(N):
                if parts[i].steps:
                    parts[i].slot.steps += min(parts[i].steps, call.done)
                    parts[i].slot.used = now
        n = 0
        for i in range(N):
            if parts[i].steps == 0:
                continue
            memcpy(parts[i].y, self.y.data + n * block * y_bytes, parts[i].outputs * y_bytes)
            parts[i].x += parts[i].steps * x_bytes
            parts[i].y += parts[i].outputs * y_bytes
            parts[i].left -= parts[i].steps
            n += 1
        return 0

    def output_steps(self, slots, steps=1):
        """Rows that the next steps of each stream give.

        Parameters
        ----------
        slots : int64 array (N,), or int
        steps : int or integer array (N,), default 1
            How many steps.

        Returns
        -------
        int64 array (N,), or int
            As many as `steps`, but for models with strided or delayed convolutions.

        Raises
        ------
        TypeError, ValueError
            If a slot is not open or given twice, or `steps` are not integers from 0 on.
        """
        cdef int ndim = 0
        cdef Py_ssize_t N, i
        cdef cnp.ndarray counts
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
            for i in range(N):
                (<int64_t *>cnp.PyArray_DATA(counts))[i] = self.outputs_of(
                    i, (<int64_t *>cnp.PyArray_DATA(counts))[i])
            return counts if ndim else int(counts[0])
        finally:
            fl_leave(&self.busy)
