# Network: a packed program behind the names and shapes of what it reads and gives, and its calls.

from libc.string cimport memcpy, memset

from fastlstm cimport (
    FL_COUNT_AHEAD, FL_COUNT_INPUTS, FL_COUNT_OUTPUTS, FL_COUNT_PARTS, FL_COUNT_STATE, FL_OK,
    FL_STOPPED, fl_begin, fl_call, fl_count, fl_count_rows, fl_error, fl_flush, fl_gemm,
    fl_input_shape, fl_model_isa, fl_output_shape, fl_part_shape, fl_rows, fl_run, fl_scratch,
    fl_scratch_init, fl_scratch_size, fl_state_part, fl_state_read, fl_state_size,
    fl_state_write, fl_team, fl_team_free, fl_team_new, fl_team_threads,
    fl_threads,
)


# Bytes of weights a call may read with the GIL held: about 5 microseconds at the 30 to 60 GB/s at
# which one core reads beyond its first-level cache. Releasing and taking it back costs 0.1.
cdef size_t GIL_BYTES = 192 * 1024

# Bytes of scratch that a network keeps for its next run.
cdef size_t KEEP_BYTES = 4 * 1024 * 1024


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


cdef class Network:
    """A program packed with its tensors: read-only, shareable between threads.

    Parameters
    ----------
    program : Program
    tensors : sequence of array
        Those of the program, in its order, float32 or float64 each.
    dtype : dtype
        What to compute in: float32 or float64.
    isa : str
        Name of an instruction set from :func:`kernels`.
    inputs, outputs : sequence of Port
        Those of the program, in its order.
    constant : bool
        Whether the tensors' numbers never change, so that one that is read as it lies need not be
        copied. Only of tensors of `dtype`; the network keeps them alive.
    work : int
        Multiply-adds of a step, which decide whether a call releases the GIL.
    keeps_steps : bool
        Whether each step gives each output one row at once, whatever the state.
    folds : bool
        Whether a whole sequence has one row of an output, made of all its steps.
    reproducible : bool
        Whether to do without BLAS, so that no bit depends on how a sequence is cut into calls.
    threads : int
        Threads a call may use, its caller's among them. They start when a call first wants them.

    Raises
    ------
    ValueError
        If the tensors, inputs or outputs are not the program's.
    """

    cdef Packed packed              # never changed, but replaced by :meth:`take`
    cdef int type_num               # NumPy's number of the real type
    cdef size_t step_bytes          # that a step computes with
    cdef bint wants_gemm            # whether to look for a BLAS before the first long run
    cdef fl_gemm gemm               # NULL until then, or if there is none
    cdef fl_team *team              # NULL: calls run on one thread
    cdef fl_threads threads
    cdef list spare                 # Scratch not in use; a list's append and pop are atomic
    cdef readonly object dtype
    cdef readonly tuple inputs, outputs   # of Port
    cdef readonly tuple moving, held      # inputs with a row for each step, and for each sequence
    cdef tuple moving_numbers, held_numbers
    cdef size_t n_inputs, n_outputs
    cdef readonly Py_ssize_t state_size
    cdef size_t state_bytes
    cdef readonly bint keeps_steps, folds, looks_ahead
    cdef bint is_single             # one array in, one out
    cdef Port x, y                  # the first that has a row for each step, and the first output
    cdef bint one_row_a_step        # whether a step never gives several rows of an output
    cdef cnp.ndarray initial        # (state_size,) where a sequence starts, if nothing is held

    def __cinit__(self, Program program, tensors, dtype, str isa, inputs, outputs, *,
                  bint constant=False, size_t work=0, bint keeps_steps=False, bint folds=False,
                  bint reproducible=False, size_t threads=1):
        cdef size_t i
        self.dtype = np.dtype(dtype)
        self.type_num = self.dtype.num
        self.spare = []
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.keeps_steps, self.folds = keeps_steps, folds
        self.step_bytes = work * <size_t>self.dtype.itemsize
        self.packed = Packed(program, tensors, self.dtype, isa, constant)
        self.n_inputs = fl_count(program.decoded, FL_COUNT_INPUTS)
        self.n_outputs = fl_count(program.decoded, FL_COUNT_OUTPUTS)
        self.looks_ahead = fl_count(program.decoded, FL_COUNT_AHEAD)
        if (len(self.inputs), len(self.outputs)) != (self.n_inputs, self.n_outputs):
            raise ValueError("there are not as many inputs and outputs as the program has")
        for i in range(self.n_inputs):
            (<Port>self.inputs[i]).match(fl_input_shape(program.decoded, i))
        for i in range(self.n_outputs):
            (<Port>self.outputs[i]).match(fl_output_shape(program.decoded, i))
        self.moving_numbers = tuple([i for i, port in enumerate(self.inputs) if not port.held])
        self.held_numbers = tuple([i for i, port in enumerate(self.inputs) if port.held])
        self.moving = tuple([self.inputs[i] for i in self.moving_numbers])
        self.held = tuple([self.inputs[i] for i in self.held_numbers])
        if not self.moving:
            raise ValueError("all inputs are held; expected one that has a row for each step")
        self.is_single = self.n_inputs == self.n_outputs == 1 and not self.held
        self.x, self.y = self.moving[0], self.outputs[0]
        self.one_row_a_step = all([port.step_rows == 1 for port in self.outputs])
        self.state_size = fl_count(program.decoded, FL_COUNT_STATE)
        self.state_bytes = fl_state_size(self.packed.model)
        if self.state_bytes != <size_t>(self.state_size * self.dtype.itemsize):
            raise ValueError("the state has another size than the program says")
        self.wants_gemm = not reproducible and isa == "scalar"
        if threads > 1:
            self.team = fl_team_new(threads)
            if self.team == NULL:
                raise MemoryError(f"a team of {threads} threads")
            self.threads = fl_team_threads(self.team, threads)
        self.initial = np.zeros(self.state_size, self.dtype)
        if not self.held:
            self.begin(self.initial.reshape(1, self.state_size), [])
            self.initial.flags.writeable = False

    def __dealloc__(self):
        fl_team_free(self.team)

    @property
    def isa(self):
        return fl_model_isa(self.packed.model).decode()

    @property
    def nbytes(self):
        """Bytes of the packed weights, with all that goes with them; not of tensors it reads."""
        return self.packed.block.size

    def take(self, Network other):
        """Compute from now on with what another network of the same program's layout does.

        States live on; a call that runs meanwhile ends with what it began with.
        """
        self.packed, self.initial = other.packed, other.initial
        self.spare = []

    # ---- What a state holds, by the numbers of its parts.

    cdef size_t part_count(self) noexcept:
        return fl_count(self.packed.program.decoded, FL_COUNT_PARTS)

    def part_counts(self):
        """Of each part whether it is a count, an integer."""
        return [bool(fl_state_part(self.packed.program.decoded, number).is_count)
                for number in range(self.part_count())]

    def read_parts(self, cnp.ndarray block):
        """The parts of states (B, state_size): arrays (rows, B, count), or int64 (1, B, 1)."""
        cdef const char *state = <const char *>cnp.PyArray_DATA(self.checked_block(block))
        cdef Py_ssize_t B = block.shape[0], b
        cdef Packed packed = self.packed
        cdef fl_part_shape part
        cdef cnp.ndarray rows
        cdef size_t number, size
        cdef fl_error error
        made = []
        for number in range(self.part_count()):
            part = fl_state_part(packed.program.decoded, number)
            dtype = np.int64 if part.is_count else self.dtype
            rows = np.empty((B, part.rows, part.count), dtype)
            size = part.rows * part.count * cnp.PyArray_ITEMSIZE(rows)
            for b in range(B):
                error = fl_state_read(packed.model, state + b * self.state_bytes, number,
                                      cnp.PyArray_BYTES(rows) + b * size, size)
                if error != FL_OK:
                    raise failed(error, NULL)
            made.append(np.ascontiguousarray(rows.swapaxes(0, 1)))
        return made

    def write_parts(self, cnp.ndarray block, dict parts):
        """Put parts, arrays as of :meth:`read_parts`, into the states (B, state_size).

        Parameters
        ----------
        block : array (B, state_size)
        parts : dict of str to array
            In the order of their numbers; the names are those of errors.

        Raises
        ------
        ValueError
            If a number is one that no state can have. The block may then be half written.
        """
        cdef char *state = <char *>cnp.PyArray_DATA(self.checked_block(block))
        cdef Py_ssize_t B = block.shape[0], b
        cdef fl_part_shape part
        cdef cnp.ndarray rows
        cdef size_t number, size, n = self.part_count()
        cdef Packed packed = self.packed
        cdef bint counts
        if len(parts) != <Py_ssize_t>n:
            raise ValueError(f"a state has {n} parts, not {len(parts)}")
        for counts in (True, False):  # a ring is written where its count says
            for number, (name, given) in enumerate(parts.items()):
                part = fl_state_part(packed.program.decoded, number)
                if part.is_count != counts:
                    continue
                rows = np.ascontiguousarray(
                    np.asarray(given, np.int64 if counts else self.dtype).swapaxes(0, 1))
                if not fits(rows, (B, part.rows, part.count)):
                    raise ValueError(f"state {name!r} does not fit the network")
                size = part.rows * part.count * cnp.PyArray_ITEMSIZE(rows)
                for b in range(B):
                    if fl_state_write(packed.model, state + b * self.state_bytes, number,
                                      cnp.PyArray_BYTES(rows) + b * size, size) != FL_OK:
                        raise ValueError(
                            f"state {name!r} holds {rows[b].ravel()[0]}; expected a count of steps "
                            f"that a state of this model can have")
        return block

    cdef cnp.ndarray checked_block(self, cnp.ndarray block):
        if not (block.ndim == 2 and block.shape[1] == self.state_size
                and is_of(block, self.type_num) and cnp.PyArray_ISCARRAY(block)):
            raise ValueError("the states do not fit the network")
        return block

    # ---- Calls.

    cdef Scratch take_scratch(self, size_t T, size_t B):
        """Memory for calls of up to T steps of B rows, with whatever is in it."""
        cdef Scratch scratch
        try:
            scratch = self.spare.pop()
        except IndexError:
            scratch = Scratch()
        scratch.fit(self, self.packed, T, B)
        return scratch

    cdef void give_scratch(self, Scratch scratch) noexcept:
        # A run over a whole bidirectional sequence may have needed much: that is not kept. Nor is
        # what a call began before the weights were replaced, which would keep them, too.
        if scratch.memory.size <= KEEP_BYTES and scratch.packed is self.packed:
            self.spare.append(scratch)

    cdef bint releases_gil(self, size_t T, size_t B) noexcept:
        """Whether a call is worth releasing the GIL; 6 rows share one reading of the weights."""
        return <double>self.step_bytes * T * ((B + 5) // 6) > GIL_BYTES

    cdef int run_ready(self, fl_call *call, Scratch scratch) except -1:
        """Run a call whose every field is set but its scratch, or raise what a handler raised.

        `call.steps_done` tells how many steps were made either way. A single step is atomic.
        """
        cdef fl_asker asker
        cdef fl_error error
        cdef Packed packed = scratch.packed
        call.struct_size, call.scratch = sizeof(fl_call), scratch.made
        call.threads = NULL if self.team == NULL else &self.threads
        if not self.releases_gil(call.T, call.B):
            error = fl_run(packed.model, call)
        else:
            if (call.whole or call.T > 1) and is_main_thread():
                call.stop, call.who = ask_signals, &asker
                asker.due = monotonic() + LOOK_SECONDS
            asker.thread = PyEval_SaveThread()
            error = fl_run(packed.model, call)
            PyEval_RestoreThread(asker.thread)
            call.stop = NULL
        if error == FL_STOPPED:
            return -1
        if error != FL_OK:
            raise failed(error, NULL)
        return 0

    cdef int execute(self, fl_call *call) except -1:
        """Run a call of a sequence, with scratch of this network's."""
        cdef Scratch scratch = self.take_scratch(call.T, call.B)
        if self.wants_gemm and call.T * call.B > 1:
            self.wants_gemm = False
            if find_blas() in ("LP64", "ILP64"):
                self.gemm = gemm_of_floats if self.type_num == cnp.NPY_FLOAT32 else gemm_of_doubles
        call.gemm = self.gemm
        try:
            self.run_ready(call, scratch)
        finally:
            self.give_scratch(scratch)
        return 0

    cdef int begin_rows(self, void **states, size_t B, list held) except -1:
        """Put states where a sequence starts, with rows of the held inputs, arrays (B, ...)."""
        cdef Places places
        cdef Scratch scratch
        cdef fl_call call
        cdef fl_error error
        cdef size_t b
        if not self.held and self.initial is not None and not cnp.PyArray_ISWRITEABLE(self.initial):
            for b in range(B):
                memcpy(states[b], cnp.PyArray_DATA(self.initial), self.state_bytes)
            return 0
        places = Places(self)
        places.put_held(held)
        memset(&call, 0, sizeof(call))
        scratch = self.take_scratch(1, B)
        call.struct_size, call.B, call.scratch = sizeof(fl_call), B, scratch.made
        call.inputs, call.states = places.inputs, <void *const *>states
        error = fl_begin(scratch.packed.model, &call)
        self.give_scratch(scratch)
        if error != FL_OK:
            raise failed(error, NULL)
        return 0

    def begin(self, cnp.ndarray block, list held):
        """Put states (B, state_size) where a sequence starts; `held` as of :meth:`held_of`."""
        cdef Buffer rows = self.pointers(self.checked_block(block))
        if len(held) != len(self.held):
            raise ValueError("there are not as many arrays as held inputs")
        for port, array in zip(self.held, held):
            self.check_held(port, array, block.shape[0])
        self.begin_rows(<void **>rows.data, block.shape[0], held)
        return block

    cdef int check_held(self, Port port, cnp.ndarray array, Py_ssize_t B) except -1:
        if not (is_of(array, cnp.NPY_INT64 if port.tokens else self.type_num)
                and cnp.PyArray_ISCARRAY_RO(array) and fits(array, (B, *port.shape))):
            raise ValueError(f"{port.name!r} does not fit the network")
        return 0

    cdef Buffer pointers(self, cnp.ndarray block):
        """A pointer to each row of an array (B, state_size)."""
        cdef Buffer rows = Buffer(block.shape[0] * sizeof(void *))
        cdef Py_ssize_t b
        for b in range(block.shape[0]):
            (<char **>rows.data)[b] = cnp.PyArray_BYTES(block) + b * self.state_bytes
        return rows

    def held_of(self, held, Py_ssize_t B, bint batched=True):
        """Arrays (B, ...) of what is held for a sequence, copied from what a caller gives.

        Parameters
        ----------
        held : mapping of str to array (B, *shape), or without `batched` (*shape)
            Of every held input; None is none.
        B : int
        batched : bool

        Raises
        ------
        TypeError, ValueError
            If one is missing, unknown, or of another dtype or shape.
        """
        made = []
        for port, value in zip(self.held, by_name(self.held, {} if held is None else held, "held")):
            array = self.as_rows(port, value, (B,) if batched else ())
            made.append(np.array(array, order="C").reshape(B, *port.shape))
        return made

    def as_rows(self, Port port, x, tuple leading, bint check=True, bint contiguous=True):
        """What a caller gives as an input, as an array of shape (*leading, *port.shape)."""
        name = "x" if len(self.inputs) == 1 else repr(port.name)
        shape = (*leading, *port.shape)
        if port.tokens:
            return as_tokens(x, shape, port.tokens, check, name)
        return as_features(x, self.dtype, shape, contiguous or port.ndim != 1, name)

    def given(self, x):
        """The values of the inputs that have a row for each step, from what a caller gives."""
        if len(self.moving) == 1 and (cnp.PyArray_CheckExact(x) or not isinstance(x, Mapping)):
            return [x]
        return by_name(self.moving, x, "x")

    def arrays_of(self, x, tuple leading, bint check=True, bint contiguous=True):
        """Arrays (*leading, ...) of the inputs with a row for each step, as a caller gives them.

        Where `leading` has None, the first input tells how many there are of all.
        """
        made = []
        for port, value in zip(self.moving, self.given(x)):
            array = self.as_rows(port, value, leading, check, contiguous)
            leading = array.shape[:len(leading)]
            made.append(array)
        return made

    def count_rows(self, cnp.ndarray block, size_t T, cnp.ndarray lengths=None, *,
                   bint whole=False, bint ending=False):
        """Rows that the next T steps of states (B, state_size) give, or where `ending`, their end.

        Parameters
        ----------
        block : array (B, state_size)
        T : int
        lengths : array (B,) of intp, none of more than T, optional
        whole : bool
            Whether what is folded has one row for the sequence.

        Returns
        -------
        int64 array (outputs, B)
        """
        cdef fl_call call
        cdef Buffer rows = self.pointers(self.checked_block(block))
        made = np.zeros((self.n_outputs, block.shape[0]), np.int64)
        memset(&call, 0, sizeof(call))
        call.T, call.B, call.whole = 0 if ending else T, block.shape[0], whole
        self.set_lengths(&call, lengths)
        self.count_into(&call, <void **>rows.data, <size_t *>cnp.PyArray_DATA(made), ending)
        return made

    cdef int count_into(self, fl_call *call, void **states, size_t *rows, bint ending,
                        Scratch own=None) except -1:
        """Count into rows (outputs, B) what a call whose T, B, lengths and whole are set gives.

        In a caller's own scratch for such a call, or one of this network's.
        """
        cdef fl_error error
        cdef Scratch scratch = own
        if own is None:
            scratch = self.take_scratch(max(call.T, 1), call.B)
        else:
            own.fit(self, self.packed, max(call.T, 1), call.B)
        call.struct_size, call.scratch = sizeof(fl_call), scratch.made
        call.states, call.rows = <void *const *>states, rows
        error = fl_count_rows(scratch.packed.model, call, ending)
        if own is None:
            self.give_scratch(scratch)
        if error != FL_OK:
            raise failed(error, NULL)
        return 0

    cdef int set_lengths(self, fl_call *call, cnp.ndarray lengths) except -1:
        if lengths is None:
            return 0
        lengths = base_of(lengths)
        if not (lengths.ndim == 1 and <size_t>lengths.shape[0] == call.B
                and is_of(lengths, cnp.NPY_INTP) and cnp.PyArray_ISCARRAY_RO(lengths)
                and (call.B == 0 or 0 <= lengths.min() <= lengths.max() <= call.T)):
            raise ValueError("lengths do not fit x")
        call.lengths = <const size_t *>cnp.PyArray_DATA(lengths)
        return 0

    cdef int set_resets(self, fl_call *call, cnp.ndarray resets) except -1:
        if not (resets.ndim == 2 and <size_t>resets.shape[0] == call.T
                and <size_t>resets.shape[1] == call.B and is_of(resets, cnp.NPY_UINT8)
                and cnp.PyArray_ISCARRAY_RO(resets)
                and self.keeps_steps and not self.folds and not self.looks_ahead):
            raise ValueError("resets do not fit x or the network")
        call.resets = <const unsigned char *>cnp.PyArray_DATA(resets)
        return 0

    def run(self, inputs, outputs, cnp.ndarray block, cnp.ndarray lengths=None,
            cnp.ndarray resets=None, held=()):
        """Run the steps of whole sequences, all but their ends.

        The caller has checked everything but what memory safety needs.

        Parameters
        ----------
        inputs : sequence of array (T, B, ...)
            Of each input with a row for each step, whose rows are contiguous.
        outputs : sequence of array (T', B, ...), likewise
            Written, of each output; T' as :meth:`count_rows` tells, the most of any row.
        block : array (B, state_size), contiguous
            Advanced in place.
        lengths : array (B,) of intp, none of more than T, optional
        resets : array (T, B) of bytes that are 0 or 1, optional
            1 where a row starts anew before it reads a step. Only for a network of which each step
            gives an output at once.
        held : list of array (B, ...)
            Where a row starts anew, it does so with these.
        """
        cdef fl_call call
        cdef Py_ssize_t T = inputs[0].shape[0], B = block.shape[0]
        cdef Places places = Places(self)
        cdef Buffer rows = self.pointers(self.checked_block(block))
        for port, array in zip(self.moving, inputs, strict=True):
            self.check_rows(port, array, T, B, np.dtype(np.int64) if port.tokens else self.dtype)
        memset(&call, 0, sizeof(call))
        call.T, call.B, call.whole = T, B, True
        self.set_lengths(&call, lengths)
        self.check_outputs(outputs, block, T, lengths, False)
        if B == 0 or T == 0:
            return
        places.put_all(inputs, outputs)
        call.inputs, call.outputs = places.inputs, places.outputs
        call.states = <void *const *>rows.data
        if resets is not None:
            self.set_resets(&call, resets)
            for port, array in zip(self.held, held, strict=True):
                self.check_held(port, array, B)
            places.put_held(list(held))
        self.execute(&call)

    def flush(self, outputs, cnp.ndarray block):
        """Write the rows that are due at the ends of whole sequences; `block` stays as it is.

        Parameters
        ----------
        outputs : sequence of array (T', B, ...)
            Of each output; T' as :meth:`count_rows` tells with `ending`, the most of any row.
        block : array (B, state_size), contiguous
        """
        cdef fl_call call
        cdef Places places = Places(self)
        cdef Buffer rows = self.pointers(self.checked_block(block))
        self.check_outputs(outputs, block, 0, None, True)
        places.put_all((), outputs)
        memset(&call, 0, sizeof(call))
        call.B, call.whole, call.outputs = block.shape[0], True, places.outputs
        self.flush_rows(&call, <void **>rows.data)

    cdef int flush_rows(self, fl_call *call, void **states) except -1:
        """Flush a call whose B, whole and outputs are set."""
        cdef Scratch scratch
        cdef fl_error error
        if call.B == 0:
            return 0
        scratch = self.take_scratch(1, call.B)
        call.struct_size, call.scratch, call.states = (
            sizeof(fl_call), scratch.made, <void *const *>states)
        error = fl_flush(scratch.packed.model, call)
        self.give_scratch(scratch)
        if error != FL_OK:
            raise failed(error, NULL)
        return 0

    cdef int check_outputs(self, outputs, cnp.ndarray block, Py_ssize_t T, lengths,
                           bint ending) except -1:
        """Check that outputs have room for the rows of each row of the batch."""
        counts = None
        if self.folds or not self.keeps_steps:
            counts = self.count_rows(block, T, lengths, whole=True, ending=ending)
        for number, (port, array) in enumerate(zip(self.outputs, outputs, strict=True)):
            self.check_rows(port, array, len(array), block.shape[0], self.dtype)
            least = (0 if ending else T) if counts is None else counts[number].max(initial=0)
            if not cnp.PyArray_ISWRITEABLE(array) or len(array) < least:
                raise ValueError(f"output {port.name!r} cannot take as many rows as there are")
        return 0

    cdef int check_rows(self, Port port, cnp.ndarray array, Py_ssize_t T, Py_ssize_t B,
                        dtype) except -1:
        if not (array.ndim == 2 + port.ndim and array.shape[0] == T and array.shape[1] == B
                and is_of(array, dtype.num) and cnp.PyArray_ISALIGNED(array) and has_rows(array, 2)
                and cnp.PyArray_CompareLists(array.shape + 2, port.axes + 2, port.ndim)):
            raise ValueError(f"{port.name!r} does not fit the network")
        return 0
