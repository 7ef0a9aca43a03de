# Network: a packed model as the structs of kernels/fastlstm.h.

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memset

from fastlstm.kernels cimport (
    FL_ACTIVATION, FL_ADD, FL_AFFINE, FL_AVERAGE, FL_CONCAT, FL_ELU, FL_FINAL, FL_FRAME_CONV,
    FL_GELU, FL_GELU_TANH, FL_GLU, FL_GRU, FL_HALVES, FL_HARD_SIGMOID, FL_HARDTANH, FL_LAST,
    FL_LAYER_NORM, FL_LEAKY_RELU, FL_LINEAR, FL_LOG_SOFTMAX, FL_LOOKUP, FL_LSTM, FL_MAGNITUDE,
    FL_MEAN, FL_MOST_BUFFERS, FL_NO_NORM, FL_NORM_GATE, FL_NORM_PRODUCT, FL_POOL, FL_PRELU,
    FL_PRODUCT, FL_REFLECT, FL_RELU, FL_REPLICATE, FL_RNN, FL_SCALE, FL_SCALED_TANH, FL_SIGMOID,
    FL_SILU, FL_SOFTMAX, FL_SOFTPLUS, FL_SOFTSIGN, FL_SUM, FL_TANH, FL_THRESHOLDED_RELU,
    FL_TIME_CONV, FL_TRANSPOSE, FL_ZEROS, fl_activation, fl_call, fl_cell, fl_convolution,
    fl_find, fl_gemm, fl_kernel, fl_kernels, fl_layer, fl_model, fl_output_steps, fl_panels,
    fl_plan, fl_plan_run, fl_run, fl_team, fl_team_free, fl_team_new, fl_variant, fl_watch,
)


cdef dict KINDS = {
    "lookup": FL_LOOKUP, "linear": FL_LINEAR, "activation": FL_ACTIVATION,
    "lstm": FL_LSTM, "gru": FL_GRU, "rnn": FL_RNN, "scale": FL_SCALE, "prelu": FL_PRELU,
    "layer_norm": FL_LAYER_NORM, "halves": FL_HALVES, "transpose": FL_TRANSPOSE,
    "frame_conv": FL_FRAME_CONV, "time_conv": FL_TIME_CONV, "pool": FL_POOL, "add": FL_ADD,
    "concat": FL_CONCAT,
}
cdef dict FUNCTIONS = {
    "relu": FL_RELU, "tanh": FL_TANH, "sigmoid": FL_SIGMOID, "softsign": FL_SOFTSIGN,
    "softplus": FL_SOFTPLUS, "silu": FL_SILU, "gelu": FL_GELU, "gelu_tanh": FL_GELU_TANH,
    "affine": FL_AFFINE, "elu": FL_ELU, "leaky_relu": FL_LEAKY_RELU,
    "thresholded_relu": FL_THRESHOLDED_RELU, "hard_sigmoid": FL_HARD_SIGMOID,
    "scaled_tanh": FL_SCALED_TANH, "hardtanh": FL_HARDTANH, "softmax": FL_SOFTMAX,
    "log_softmax": FL_LOG_SOFTMAX,
}
cdef dict COMBINATIONS = {
    "sum": FL_SUM, "product": FL_PRODUCT, "average": FL_AVERAGE, "magnitude": FL_MAGNITUDE,
    "glu": FL_GLU,
}
cdef dict POOLINGS = {"last": FL_LAST, "mean": FL_MEAN, "final": FL_FINAL}
cdef dict PADDINGS = {"zeros": FL_ZEROS, "reflect": FL_REFLECT, "replicate": FL_REPLICATE}
cdef dict NORMS = {"": FL_NO_NORM, "product": FL_NORM_PRODUCT, "gate": FL_NORM_GATE}

# Bytes of weights a call may read with the GIL held: about 5 microseconds at the 30 to 60 GB/s at
# which one core reads beyond its first-level cache. Releasing and taking it back costs 0.1.
cdef size_t GIL_BYTES = 192 * 1024


# Bytes of scratch that a network keeps for its next run.
cdef size_t KEEP_BYTES = 4 * 1024 * 1024


def kernels(size_t real_size=4):
    """Kernels this machine can run, best first.

    Parameters
    ----------
    real_size : {4, 8}
        Bytes of one number.

    Returns
    -------
    list of (str, int)
        Name and lanes.
    """
    found = []
    cdef size_t i = 0
    while fl_kernels[i] != NULL:
        if fl_kernels[i].real_size == real_size and fl_find(fl_kernels[i].name, real_size) != NULL:
            found.append((fl_kernels[i].name.decode(), fl_kernels[i].lanes))
        i += 1
    return found


def known_isas():
    """Names of all instruction sets built in, whether or not this CPU has them."""
    names = []
    cdef size_t i = 0
    while fl_kernels[i] != NULL:
        if fl_kernels[i].real_size == 4:
            names.append(fl_kernels[i].name.decode())
        i += 1
    return names


cdef class Network:
    """A packed model, read-only and shareable between threads.

    Parameters
    ----------
    packed : pack.PackedModel
        Packed for the lanes of `isa`; kept alive, read in place.
    isa : str
        Name of a kernel from :func:`kernels`.
    reproducible : bool
        Whether to do without BLAS, so that no bit depends on how a sequence is cut into calls.
    threads : int
        Threads a call may use, its caller's among them. They start when a call first wants them.
    """

    cdef fl_model model
    cdef fl_layer *layers
    cdef list variants              # Buffers that hold an fl_variant each
    cdef const fl_kernel *kernel
    cdef int type_num               # NumPy's number of the real type
    cdef size_t step_bytes          # that one step of one row reads of weights, and writes
    cdef bint wants_gemm            # whether to look for a BLAS before the first long run
    cdef fl_gemm gemm               # NULL until then, or if there is none
    cdef fl_team *team              # NULL: calls run on one thread
    cdef size_t threads
    cdef list spare                 # Buffers not in use; a list's append and pop are atomic
    cdef readonly object packed
    cdef readonly object dtype
    cdef readonly Py_ssize_t input_size, output_size
    cdef readonly bint keeps_steps  # whether each step read gives one row, whatever the state
    cdef cnp.ndarray initial        # (state_size,) where every sequence starts

    def __cinit__(self, packed, str isa, bint reproducible=False, size_t threads=1):
        self.packed = packed
        self.dtype = packed.dtype
        self.type_num = packed.dtype.num
        self.spare = []
        self.variants = []
        self.initial = np.asarray(packed.initial)
        self.kernel = fl_find(isa.encode(), packed.dtype.itemsize)
        if self.kernel == NULL or self.kernel.lanes != <size_t>packed.lanes:
            raise ValueError(f"no kernel {isa!r} with {packed.lanes} lanes of {packed.dtype} here")
        cdef size_t i, n = len(packed.layers)
        self.layers = <fl_layer *>calloc(n, sizeof(fl_layer))
        if self.layers == NULL:
            raise MemoryError()
        self.threads = threads
        if threads > 1:
            self.team = fl_team_new(threads)
            if self.team == NULL:
                raise MemoryError(f"a team of {threads} threads")
        for i in range(n):
            self.fill_layer(&self.layers[i], packed.layers[i])
        self.model.layers = self.layers
        self.model.n_layers = n
        self.model.state_size = packed.state_size
        self.model.takes_tokens = packed.takes_tokens
        self.model.looks_ahead = packed.looks_ahead
        self.model.pools = any([layer.kind == "pool" for layer in packed.layers])
        self.keeps_steps = all([
            layer.kind != "time_conv" or (
                layer.convolution.first == layer.convolution.stride == 1
                and not layer.convolution.padding_right)
            for layer in packed.layers])
        if not (fits(self.initial, (packed.state_size,))
                and is_of(self.initial, self.type_num)
                and cnp.PyArray_ISCARRAY_RO(self.initial)):
            raise ValueError("the initial state does not fit the network")
        self.wants_gemm = self.kernel.gemm_rows > 0 and not reproducible
        self.input_size = packed.layers[0].input_size
        self.output_size = packed.layers[n - 1].output_size

    def __dealloc__(self):
        fl_team_free(self.team)
        free(self.layers)

    @property
    def isa(self):
        return self.kernel.name.decode()

    cdef int point(self, const void **to, array) except -1:
        if array is None:
            return 0
        if not (cnp.PyArray_Check(array) and is_of(<cnp.ndarray>array, self.type_num)
                and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array)):
            raise ValueError("packed arrays must be contiguous, aligned and of the model's dtype")
        to[0] = cnp.PyArray_DATA(<cnp.ndarray>array)
        return 0

    cdef int fill_panels(self, fl_panels *to, panels) except -1:
        if panels is None:
            return 0
        P, K, G, last = panels.panels, panels.inputs, panels.groups, panels.last_groups
        vectors = ((P - 1) * G + last) * panels.copies * self.packed.lanes if P else 0
        if (panels.weights.size != vectors * K or panels.bias.size != vectors
                or not 1 <= last <= G <= 4):
            raise ValueError(f"panels of {panels.weights.size} weights do not fit the kernel")
        self.point(&to.weights, panels.weights)
        self.point(&to.bias, panels.bias)
        self.point(&to.scale, panels.scale)
        self.point(&to.shift, panels.shift)
        to.panels, to.groups, to.last_groups = P, G, last
        to.stride = K * G * self.packed.lanes
        self.step_bytes += panels.weights.nbytes
        return 0

    cdef int fill_layer(self, fl_layer *to, layer) except -1:
        to.kind = KINDS[layer.kind]
        fill_activation(&to.activation, layer.function)
        to.source, to.beside, to.to = layer.source, layer.beside, layer.to
        if max(layer.source, layer.beside, layer.to) >= FL_MOST_BUFFERS:
            raise ValueError("the layer reads or writes a buffer that is not there")
        to.input_size, to.output_size = layer.input_size, layer.output_size
        self.step_bytes += layer.output_size * self.kernel.real_size
        self.point(&to.table, layer.table)
        self.point(&to.weight, layer.weight)
        self.point(&to.bias, layer.bias)
        self.fill_panels(&to.linear, layer.linear)
        to.eps, to.positions = layer.eps, layer.positions
        to.combination = COMBINATIONS[layer.combination]
        to.pooling = POOLINGS[layer.pooling]
        to.state_offset, to.count_bound = layer.state_offset, layer.count_bound
        to.x_first, to.reverse, to.clip = layer.x_first, layer.reverse, layer.clip
        if layer.convolution is not None:
            fill_convolution(&to.convolution, layer.convolution)
        to.directions = len(layer.cells)
        if to.directions > 2:
            raise ValueError(f"{to.directions} directions")
        for i, cell in enumerate(layer.cells):
            self.fill_cell(&to.cell[<int>i], cell)
        return 0

    cdef int fill_cell(self, fl_cell *to, cell) except -1:
        cdef Buffer variant
        self.fill_panels(&to.gates, cell.gates)
        self.fill_panels(&to.projection, cell.projection)
        self.point(&to.bias_n, cell.bias_n)
        self.point(&to.table, cell.table)
        fill_activation(&to.activation, cell.function)
        to.input_rows, to.hidden_size, to.h_size = cell.input_rows, cell.hidden_size, cell.h_size
        to.h_offset, to.c_offset, to.y_offset = cell.h_offset, cell.c_offset, cell.y_offset
        if cell.variant is not None:
            variant = Buffer(sizeof(fl_variant))
            self.variants.append(variant)
            self.fill_variant(<fl_variant *>variant.data, cell.variant)
            to.variant = <const fl_variant *>variant.data
        return 0

    cdef int fill_variant(self, fl_variant *to, variant) except -1:
        cdef int i
        for i, function in enumerate(variant.functions):
            fill_activation(&to.functions[i], function)
        to.clip, to.cell_clip, to.eps = variant.clip, variant.cell_clip, variant.eps
        to.norm, to.coupled = NORMS[variant.norm], variant.coupled
        self.point(&to.h_bias, variant.h_bias)
        self.point(&to.bias, variant.bias)
        self.point(&to.norm_gate, variant.norm_gate)
        for i in range(3):
            self.point(&to.peepholes[i], variant.peepholes[i])
        for i in range(2):
            self.point(&to.norm_x[i], variant.norm_x[i])
            self.point(&to.norm_h[i], variant.norm_h[i])
            self.point(&to.norm_c[i], variant.norm_c[i])
        self.fill_panels(&to.reset_gates, variant.reset_gates)
        self.fill_panels(&to.reset_candidate, variant.reset_candidate)
        return 0

    def output_steps(self, size_t T, bint whole, cnp.ndarray state=None):
        """Rows that T steps give: of a whole sequence, or of a stream in a state (state_size,)."""
        cdef const void *at = NULL
        if state is not None:
            if not (fits(state, (self.model.state_size,)) and is_of(state, self.type_num)
                    and cnp.PyArray_ISCARRAY_RO(state)):
                raise ValueError("the state does not fit the network")
            at = cnp.PyArray_DATA(state)
        return fl_output_steps(&self.model, self.kernel, T, whole, at)

    cdef int make_plan(self, size_t T, size_t B, fl_plan *plan) except -1:
        if fl_plan_run(&self.model, self.kernel, T, B, self.threads, plan) < 0:
            raise MemoryError(f"a run of {T} steps of {B} rows needs more memory than there can be")
        return 0

    cdef bint releases_gil(self, size_t T, size_t B) noexcept:
        """Whether a call is worth releasing the GIL; 6 rows share one reading of the weights."""
        return <double>self.step_bytes * T * ((B + 5) // 6) > GIL_BYTES

    cdef int run_planned(self, fl_call *call) except -1:
        """Run a call whose every field is set, or raise what a signal's handler raised.

        `call.done` tells how many steps were made either way. A single step of a stream is atomic.
        """
        cdef fl_watch watch
        cdef fl_asker asker
        cdef Buffer kept
        if not self.releases_gil(call.T, call.B):
            fl_run(self.kernel, &self.model, call, self.team)
            return 0
        watch.stop = 0
        if (call.whole or call.T > 1) and is_main_thread():
            if not call.whole:
                kept = Buffer(call.B * self.model.state_size * self.kernel.real_size)
                call.kept = kept.data
            watch.ask, watch.who = ask_signals, &asker
            asker.due = monotonic() + LOOK_SECONDS
            call.watch = &watch
        asker.thread = PyEval_SaveThread()
        fl_run(self.kernel, &self.model, call, self.team)
        PyEval_RestoreThread(asker.thread)
        call.watch = NULL
        return -1 if watch.stop else 0

    cdef int execute(self, fl_call *call) except -1:
        """Run a call whose T, B, x or tokens, y, strides and state are set."""
        cdef fl_plan plan
        cdef Buffer scratch
        self.make_plan(call.T, call.B, &plan)
        try:
            scratch = self.spare.pop()
        except IndexError:
            scratch = None
        if scratch is None or scratch.size < plan.bytes:
            scratch = Buffer(plan.bytes)
        call.plan = &plan
        call.scratch = scratch.data
        if self.wants_gemm and call.T * call.B >= self.kernel.gemm_rows:
            self.wants_gemm = False
            if find_blas() in ("LP64", "ILP64"):
                self.gemm = gemm_of_floats if self.kernel.real_size == 4 else gemm_of_doubles
        call.gemm = self.gemm
        self.run_planned(call)
        call.plan = NULL
        # A run over a whole bidirectional sequence may have needed much: that is not kept.
        if scratch.size <= KEEP_BYTES:
            self.spare.append(scratch)
        return 0

    def run(self, cnp.ndarray x, cnp.ndarray y, cnp.ndarray state, cnp.ndarray lengths=None,
            cnp.ndarray resets=None):
        """Run a whole sequence; the caller has checked everything but what memory safety needs.

        Parameters
        ----------
        x : array (T, B, I) of the model's dtype with unit stride along I, or int64 (T, B) of tokens
        y : array (T', B, O), likewise; written, and with T' of :meth:`output_steps`
        state : array (B, state_size), contiguous; advanced in place
        lengths : array (B,) of intp, none of more than T, optional
        resets : array (T, B) of bytes that are 0 or 1, optional
            1 where a row starts anew before it reads a step. Only for a network of which each step
            gives an output at once.
        """
        cdef cnp.npy_intp item = self.dtype.itemsize
        cdef fl_call call
        x, y, state = base_of(x), base_of(y), base_of(state)
        memset(&call, 0, sizeof(call))
        call.T, call.B = x.shape[0], state.shape[0]
        if not (y.ndim == 3 and state.ndim == 2 and x.ndim == 3 - self.model.takes_tokens
                and y.shape[2] == self.output_size
                and x.shape[1] == y.shape[1] == state.shape[0]
                and state.shape[1] == <Py_ssize_t>self.model.state_size
                and y.dtype == self.dtype == state.dtype and state.flags.c_contiguous
                and x.flags.aligned and has_rows(y) and y.flags.writeable
                and state.flags.writeable):
            raise ValueError("x, y and state do not fit the network")
        if call.B and y.shape[0] != self.output_steps(call.T, True, state[0]):
            raise ValueError("y does not have as many steps as the network gives")
        if lengths is not None:
            lengths = base_of(lengths)
            if not (lengths.ndim == 1 and lengths.shape[0] == state.shape[0]
                    and lengths.dtype == np.intp and lengths.flags.c_contiguous
                    and (lengths.size == 0 or 0 <= lengths.min() <= lengths.max() <= x.shape[0])):
                raise ValueError("lengths do not fit x")
            call.lengths = <const size_t *>cnp.PyArray_DATA(lengths)
        resets = None if resets is None else base_of(resets)
        if resets is not None and not (
                resets.ndim == 2 and resets.shape[0] == x.shape[0]
                and resets.shape[1] == x.shape[1] and resets.dtype == np.uint8
                and resets.flags.c_contiguous and self.keeps_steps
                and not self.model.pools and not self.model.looks_ahead):
            raise ValueError("resets do not fit x or the network")
        call.whole = True
        call.y, call.y_t, call.y_b = cnp.PyArray_DATA(y), y.strides[0] // item, y.strides[1] // item
        if self.model.takes_tokens:
            if x.dtype != np.int64:
                raise ValueError("tokens must be int64")
            call.tokens = <const int64_t *>cnp.PyArray_DATA(x)
            call.x_t, call.x_b = x.strides[0] // 8, x.strides[1] // 8
        else:
            if x.dtype != self.dtype or x.shape[2] != self.input_size or not has_rows(x):
                raise ValueError("x does not fit the network")
            call.x = cnp.PyArray_DATA(x)
            call.x_t, call.x_b = x.strides[0] // item, x.strides[1] // item
        if call.T == 0 or call.B == 0:
            return
        cdef Buffer rows = Buffer(call.B * sizeof(void *))
        cdef size_t b
        cdef char *first = <char *>cnp.PyArray_DATA(state)
        for b in range(call.B):
            (<void **>rows.data)[b] = first + b * self.model.state_size * item
        call.state = <void *const *>rows.data
        if resets is None:
            self.execute(&call)
        else:
            self.run_between(&call, <const char *>cnp.PyArray_DATA(resets))

    cdef int run_between(self, const fl_call *whole, const char *resets) except -1:
        """Run a call in parts, each of the steps (B,) from one with a reset to the next."""
        cdef size_t T = whole.T, B = whole.B, item = self.kernel.real_size, t = 0, b, end
        cdef Buffer left = Buffer(B * sizeof(size_t))
        cdef size_t *lengths = <size_t *>left.data
        cdef const void *found
        cdef fl_call part
        cdef double due = monotonic() + LOOK_SECONDS
        while t < T:
            if t:
                check_signals()
            # Each part may be too short to release the GIL for.
            if monotonic() >= due:
                with nogil:
                    pass
                due = monotonic() + LOOK_SECONDS
            for b in range(B):
                if resets[t * B + b] and (whole.lengths == NULL or t < whole.lengths[b]):
                    memcpy(whole.state[b], cnp.PyArray_DATA(self.initial),
                           self.model.state_size * item)
            found = memchr(resets + (t + 1) * B, 1, (T - t - 1) * B)
            end = T if found == NULL else (<const char *>found - resets) // B
            part = whole[0]
            part.T = end - t
            if self.model.takes_tokens:
                part.tokens += <Py_ssize_t>t * whole.x_t
            else:
                part.x = <const char *>whole.x + <Py_ssize_t>(t * item) * whole.x_t
            part.y = <char *>whole.y + <Py_ssize_t>(t * item) * whole.y_t
            if whole.lengths != NULL:
                for b in range(B):
                    lengths[b] = min(max(whole.lengths[b], t) - t, end - t)
                part.lengths = lengths
            self.execute(&part)
            t = end
        return 0


cdef int fill_activation(fl_activation *to, function) except -1:
    if function is not None:
        to.function = FUNCTIONS[function.name]
        to.alpha, to.beta = function.alpha, function.beta
    return 0


cdef int fill_convolution(fl_convolution *to, convolution) except -1:
    to.channels, to.out_channels = convolution.channels, convolution.out_channels
    to.kernel_size, to.stride = convolution.kernel_size, convolution.stride
    to.dilation, to.groups = convolution.dilation, convolution.groups
    to.depthwise, to.padding = convolution.depthwise, PADDINGS[convolution.padding_mode]
    to.padding_left, to.padding_right = convolution.padding_left, convolution.padding_right
    to.width, to.out_width = convolution.width, convolution.out_width
    to.reach, to.first, to.period = convolution.reach, convolution.first, convolution.period
    to.x_offset, to.count_offset = convolution.x_offset, convolution.count_offset
    to.has_count = convolution.has_count
    return 0
