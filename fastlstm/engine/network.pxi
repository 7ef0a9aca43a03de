# Network: a packed program behind its ports, and its calls.

from libc.string cimport memcpy, memset

from fastlstm cimport (
    FL_COUNT_AHEAD, FL_COUNT_STATE, FL_OK, FL_STOPPED, fl_begin, fl_call, fl_count, fl_count_rows,
    fl_error, fl_flush, fl_gemm, fl_model_isa, fl_run, fl_state_size, fl_team, fl_team_free,
    fl_team_new, fl_team_threads, fl_threads,
)


# Bytes of weights a call may read with the GIL held: about 5 microseconds at the 30 to 60 GB/s at
# which one core reads beyond its first-level cache. Releasing and taking it back costs 0.1.
cdef size_t GIL_BYTES = 192 * 1024

# Bytes of scratch that a network keeps for its next run.
cdef size_t KEEP_BYTES = 4 * 1024 * 1024


cdef class Network(Ports):
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
    cdef size_t step_bytes          # that a step computes with
    cdef bint wants_gemm            # whether to look for a BLAS before the first long run
    cdef fl_gemm gemm               # NULL until then, or if there is none
    cdef fl_team *team              # NULL: calls run on one thread
    cdef fl_threads threads
    cdef list spare                 # Scratch not in use; a list's append and pop are atomic
    cdef readonly Py_ssize_t state_size
    cdef size_t state_bytes
    cdef readonly bint keeps_steps, folds, looks_ahead
    cdef cnp.ndarray initial        # (state_size,) where a sequence starts, if nothing is held

    def __cinit__(self, Program program, tensors, dtype, str isa, inputs, outputs, *,
                  bint constant=False, size_t work=0, bint keeps_steps=False, bint folds=False,
                  bint reproducible=False, size_t threads=1):
        self.match(program, dtype, inputs, outputs)
        self.spare = []
        self.keeps_steps, self.folds = keeps_steps, folds
        self.looks_ahead = fl_count(program.decoded, FL_COUNT_AHEAD)
        self.step_bytes = work * <size_t>self.dtype.itemsize
        self.packed = Packed(program, tensors, self.dtype, isa, constant)
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

    # ---- Calls of the core.

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

    # ---- States of one array (B, state_size).

    cdef cnp.ndarray checked_block(self, cnp.ndarray block):
        if not (block.ndim == 2 and block.shape[1] == self.state_size
                and is_of(block, self.type_num) and cnp.PyArray_ISCARRAY(block)):
            raise ValueError("the states do not fit the network")
        return block

    cdef Buffer pointers(self, cnp.ndarray block):
        """A pointer to each row of an array (B, state_size)."""
        cdef Buffer rows = Buffer(block.shape[0] * sizeof(void *))
        cdef Py_ssize_t b
        for b in range(block.shape[0]):
            (<char **>rows.data)[b] = cnp.PyArray_BYTES(block) + b * self.state_bytes
        return rows

    def begin(self, cnp.ndarray block, list held):
        """Put states (B, state_size) where a sequence starts; `held` as of :meth:`held_of`."""
        cdef Buffer rows = self.pointers(self.checked_block(block))
        if len(held) != len(self.held):
            raise ValueError("there are not as many arrays as held inputs")
        for port, array in zip(self.held, held):
            self.check_held(port, array, block.shape[0])
        self.begin_rows(<void **>rows.data, block.shape[0], held)
        return block
