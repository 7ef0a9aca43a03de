# Pool: calls that step any of many streams together.

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastlstm.core cimport fl_call, fl_rows

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
    cdef Scratch scratch
    cdef Buffer port_rows
    cdef fl_rows *inputs            # (inputs,) of a call
    cdef fl_rows *outputs           # (outputs,)
    cdef size_t turn                # steps run before
    cdef int64_t token              # that a step reads, given as an int

    def __cinit__(self, Network network, *args, **kwargs):
        self.lengths = self.parts = self.active = self.x = self.y = self.counts = Buffer(0)
        self.scratch = Scratch()
        self.port_rows = Buffer((network.n_inputs + network.n_outputs) * sizeof(fl_rows))
        self.inputs = <fl_rows *>self.port_rows.data
        self.outputs = self.inputs + network.n_inputs

    cdef int run_call(self, fl_call *call, void **states) except -1:
        """Run a call whose T, B and lengths are set, of streams in these states (B,).

        Never by a BLAS, whose sums depend on the number of rows.
        """
        cdef Network network = self.network
        self.scratch.fit(network, call.T, call.B)
        call.scratch = self.scratch.made
        call.inputs, call.outputs = self.inputs, self.outputs
        call.states = <void *const *>states
        call.turn = self.turn
        network.run_ready(call)
        self.turn = call.turn
        return 0

    cdef void count_steps(self, size_t N, size_t T, const size_t *lengths) noexcept:
        cdef double now = monotonic()
        cdef fl_slot **taken = <fl_slot **>self.taken.data
        cdef size_t i
        for i in range(N):
            taken[i].steps += T if lengths == NULL else min(lengths[i], T)
            taken[i].used = now

    cdef const size_t *count_rows(self, void **states, size_t N, size_t T,
                                  const size_t *lengths) except NULL:
        """Rows (outputs, N) that the next steps of streams in these states (N,) give."""
        cdef fl_call call
        memset(&call, 0, sizeof(call))
        call.T, call.B, call.lengths = T, N, lengths
        self.counts = at_least(self.counts, (self.network.n_outputs * N + 1) * sizeof(size_t))
        if N:
            self.scratch.fit(self.network, max(T, 1), N)
            self.network.count_into(&call, states, <size_t *>self.counts.data, False, self.scratch)
        return <const size_t *>self.counts.data

    cdef size_t *fill_lengths(self, size_t N, size_t T) except NULL:
        cdef size_t i
        self.lengths = at_least(self.lengths, N * sizeof(size_t))
        for i in range(N):
            (<size_t *>self.lengths.data)[i] = T
        return <size_t *>self.lengths.data

    cdef inline int shape_of(self, Port port, Py_ssize_t T, Py_ssize_t N,
                             cnp.npy_intp *shape) noexcept:
        """The shape of T rows of N streams, either left out where it is -1; how many axes."""
        cdef int n = 0, i
        if T >= 0:
            shape[n] = T
            n += 1
        if N >= 0:
            shape[n] = N
            n += 1
        for i in range(port.ndim):
            shape[n + i] = port.axes[i + 2]
        return n + port.ndim

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
        cdef fl_call call
        cdef int ndim = 0
        cdef Py_ssize_t N, rows
        self.enter()
        try:
            N = self.take_slots(slots, &ndim)
            rows = N if ndim else -1
            if not network.one_row_a_step:
                name = [port.name for port in network.outputs if port.step_rows != 1][0]
                raise ValueError(f"a step may give several rows of output {name!r}; expected run "
                                 f"of a block of steps")
            if network.is_single and not isinstance(x, dict):
                return self.step_single(x, out, N, rows)
            memset(&call, 0, sizeof(call))
            arrays = self.take_inputs(x, -1, rows, &call)
            results = self.take_outputs(out, -1, rows, arrays)
            if not network.keeps_steps:
                for result in results:
                    result.fill(0)
            self.run_step(N)
            return self.named(results, out)
        finally:
            fl_leave(&self.busy)

    cdef object step_single(self, x, out, Py_ssize_t N, Py_ssize_t rows):
        """A step of a model of one input and one output: the usual case, without a list."""
        cdef Network network = self.network
        cdef cnp.npy_intp shape[MOST_AXES]
        cdef cnp.ndarray result
        cdef Port port = network.x
        cdef int ndim = self.shape_of(port, -1, rows, shape)
        if port.tokens and ndim == 0 and type(x) is int and 0 <= x < <object>port.tokens:
            self.token = x
            self.inputs[0].data = &self.token
            x = None
        else:
            if not (are_tokens(x, ndim, shape, port.tokens) if port.tokens else
                    is_plain(x, network.type_num, ndim, shape)):
                x = network.as_rows(port, x, as_tuple(ndim - port.ndim, shape))
            self.inputs[0].data = cnp.PyArray_DATA(<cnp.ndarray>x)
        self.inputs[0].b = port.count
        ndim = self.shape_of(network.y, -1, rows, shape)
        if out is None:
            result = cnp.PyArray_EMPTY(ndim, shape, network.type_num, 0)
        else:
            result = output_of(network, out, "out", ndim, shape)
            if x is not None:
                check_apart("out", result, x)
        self.outputs[0].data, self.outputs[0].b = cnp.PyArray_DATA(result), network.y.count
        if not network.keeps_steps:
            memset(cnp.PyArray_DATA(result), 0, cnp.PyArray_NBYTES(result))
        self.run_step(N)
        return result if out is None else out

    cdef int run_step(self, Py_ssize_t N) except -1:
        """Run a step of the streams taken, of which `inputs` and `outputs` tell where they are."""
        cdef fl_call call
        cdef const size_t *counts
        cdef size_t i
        if N == 0:
            return 0
        memset(&call, 0, sizeof(call))
        call.T, call.B = 1, N
        if not self.network.keeps_steps:
            call.lengths = self.fill_lengths(N, 1)
            counts = self.count_rows(<void **>self.rows.data, N, 1, NULL)
            for i in range(self.network.n_outputs * <size_t>N):
                if counts[i] > 1:
                    raise several_rows(self.network.outputs[i // <size_t>N])
        self.run_call(&call, <void **>self.rows.data)
        self.count_steps(N, 1, NULL)
        return 0

    cdef list take_inputs(self, x, Py_ssize_t T, Py_ssize_t N, fl_call *call, bint check=True):
        """What a caller gives for the inputs, checked, and in `inputs` where it is.

        T is -1 for a step, -2 for steps whose number it tells, then in the call; N is -1 for one
        slot.
        """
        cdef Network network = self.network
        cdef cnp.npy_intp shape[MOST_AXES]
        cdef cnp.npy_intp item
        cdef cnp.ndarray array
        cdef list made = []
        cdef Port port
        cdef int ndim, by_steps = T != -1
        cdef size_t i = 0
        cdef tuple leading
        for port, value in zip(network.moving, network.given(x)):
            while network.inputs[i] is not port:
                i += 1
            ndim = self.shape_of(port, T, N, shape) if T == -1 else 0
            if T == -1 and (are_tokens(value, ndim, shape, port.tokens) if port.tokens else
                            is_plain(value, network.type_num, ndim, shape)):
                array = <cnp.ndarray>value
            else:
                leading = () if N < 0 else (N,)
                if by_steps:
                    leading = (None if not made else call.T, *leading)
                array = network.as_rows(port, value, leading, check, False)
            item = cnp.PyArray_ITEMSIZE(array)
            if by_steps and not made:
                call.T = array.shape[0]
            self.inputs[i].data = cnp.PyArray_DATA(array)
            self.inputs[i].t = array.strides[0] // item if by_steps else 0
            self.inputs[i].b = array.strides[by_steps] // item if N >= 0 else 0
            made.append(array)
        return made

    cdef list take_outputs(self, out, Py_ssize_t T, Py_ssize_t N, list given):
        """Arrays for the outputs, and in `outputs` where they are; T and N as of `shape_of`."""
        cdef Network network = self.network
        cdef cnp.npy_intp shape[MOST_AXES]
        cdef cnp.npy_intp item = network.dtype.itemsize
        cdef cnp.ndarray result
        cdef list made = []
        cdef bint single = network.n_outputs == 1
        cdef int ndim, by_steps = T != -1
        cdef Py_ssize_t most
        cdef size_t i, b, n = 1 if N < 0 else N
        cdef const size_t *counts = NULL
        if by_steps and not network.keeps_steps:
            counts = self.count_rows(<void **>self.rows.data, n, T,
                                     <const size_t *>self.lengths.data)
        if out is not None and not single:
            if not isinstance(out, Mapping):
                raise TypeError(f"out is a {type_text(out)}; this model has several outputs: "
                                f"expected a mapping of their names to arrays")
            if unknown := set(out) - {port.name for port in network.outputs}:
                raise ValueError(f"out has {min(unknown, key=str)!r}, which is no output")
        for i in range(network.n_outputs):
            most = T
            if counts != NULL:
                most = 0
                for b in range(n):
                    most = max(most, <Py_ssize_t>counts[i * n + b])
            ndim = self.shape_of(network.outputs[i], most, N, shape)
            to = out if single or out is None else out.get((<Port>network.outputs[i]).name)
            if to is None:
                result = cnp.PyArray_EMPTY(ndim, shape, network.type_num, 0)
            else:
                name = "out" if single else f"out[{network.outputs[i].name!r}]"
                result = output_of(network, to, name, ndim, shape, by_steps and N >= 0)
                for x in given:
                    check_apart(name, result, x)
                if any([overlap(result, other) for other in made]):
                    raise ValueError(f"{name} shares memory with another of them")
            self.outputs[i].data = cnp.PyArray_DATA(result)
            self.outputs[i].t = result.strides[0] // item if by_steps else 0
            self.outputs[i].b = result.strides[by_steps] // item if N >= 0 else 0
            made.append(result)
        return made

    cdef object named(self, list results, out):
        cdef Network network = self.network
        if network.n_outputs == 1:
            return results[0] if out is None else out
        names = [port.name for port in network.outputs]
        return {name: result if out is None else out.get(name, result)
                for name, result in zip(names, results)}

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

    cdef run_block(self, x, int ndim, Py_ssize_t N, lengths, out):
        cdef Network network = self.network
        cdef cnp.ndarray steps
        cdef fl_call call
        cdef list arrays, results
        memset(&call, 0, sizeof(call))
        call.B = N
        arrays = self.take_inputs(x, -2, N if ndim else -1, &call, lengths is None)
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
        results = self.take_outputs(out, call.T, N if ndim else -1, arrays)
        if call.lengths != NULL:
            for result in results:
                result.fill(0)
        if N and call.T:
            try:
                self.run_call(&call, <void **>self.rows.data)
            finally:
                self.count_steps(N, call.steps_done, call.lengths)
        return self.named(results, out)

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
            ndim = self.shape_of(network.y, n, -1, shape)
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
        self.inputs[0].data, self.inputs[0].t = self.x.data, network.x.count
        self.inputs[0].b = network.x.count * block
        self.outputs[0].data, self.outputs[0].t = self.y.data, network.y.count
        self.outputs[0].b = network.y.count * most
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
