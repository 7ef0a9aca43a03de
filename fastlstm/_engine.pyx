# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True
"""The only border between Python and the kernels: Network, Stream, BLAS and the GIL.

A `Network` is a packed model as the C structs of ``kernels/fastlstm.h``; a `Stream` is a network
plus its state. Nothing here imports a Python module of ours; ``fastlstm.model`` and
``fastlstm.stream`` give these classes their public faces.
"""

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
    WAIT_LOCK)
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import os

import numpy as np
cimport numpy as cnp

from fastlstm.kernels cimport (
    FL_ACTIVATION, FL_ADD, FL_AFFINE, FL_AVERAGE, FL_CONCAT, FL_ELU, FL_FINAL, FL_FRAME_CONV,
    FL_GELU, FL_GELU_TANH, FL_GLU, FL_GRU, FL_HALVES, FL_HARD_SIGMOID, FL_HARDTANH, FL_LAST,
    FL_LAYER_NORM, FL_LEAKY_RELU, FL_LINEAR, FL_LOG_SOFTMAX, FL_LOOKUP, FL_LSTM, FL_MAGNITUDE,
    FL_MEAN, FL_MOST_BUFFERS, FL_NO_NORM, FL_NORM_GATE, FL_NORM_PRODUCT, FL_POOL, FL_PRELU,
    FL_PRODUCT, FL_REFLECT, FL_RELU, FL_REPLICATE, FL_RNN, FL_SCALE, FL_SCALED_TANH, FL_SIGMOID,
    FL_SILU, FL_SOFTMAX, FL_SOFTPLUS, FL_SOFTSIGN, FL_SUM, FL_TANH, FL_THRESHOLDED_RELU,
    FL_TIME_CONV, FL_TRANSPOSE, FL_ZEROS, fl_activation, fl_call, fl_cell, fl_convolution,
    fl_find, fl_gemm, fl_kernel, fl_kernels, fl_layer, fl_model, fl_output_steps, fl_panels,
    fl_plan, fl_plan_run, fl_run, fl_team, fl_team_free, fl_team_new, fl_variant,
)

cnp.import_array()


cdef extern from *:
    """
    /* 1 if the caller now holds the flag, 0 if someone else does. Atomic, because a free-threaded
       interpreter has no GIL to make a test-and-set one step. */
    static inline int fl_enter(int *flag) {
        return !__atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE);
    }
    static inline void fl_leave(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
    """
    int fl_enter(int *flag) nogil
    void fl_leave(int *flag) nogil


cdef extern from "stdlib.h":
    void *aligned_alloc(size_t alignment, size_t size) nogil


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


# BLAS, of SciPy's Cython interface. Nothing links to it: the functions are looked up when a kernel
# wants them, and their absence or an unknown signature only means that the kernel's own loops run.

ctypedef void (*gemm32)(char *, char *, int *, int *, int *, void *, void *, int *, void *, int *,
                        void *, void *, int *) noexcept nogil
ctypedef void (*gemm64)(char *, char *, int64_t *, int64_t *, int64_t *, void *, void *, int64_t *,
                        void *, int64_t *, void *, void *, int64_t *) noexcept nogil

cdef gemm32 blas32[2]  # sgemm, dgemm with 32-bit integers
cdef gemm64 blas64[2]  # the same of an ILP64 build
cdef PyThread_type_lock blas_lock = PyThread_allocate_lock()
cdef object blas_found = None

# OpenBLAS starts its threads above 2^18 multiply-adds a call (interface/gemm.c: SMP_THRESHOLD_MIN
# times GEMM_MULTITHREAD_THRESHOLD); a model runs on the threads it was given, so calls stay below.
cdef size_t BLAS_WORK = 1 << 18


cdef void gemm(int which, size_t rows, size_t outputs, size_t inputs, const char *x,
               size_t x_stride, const void *w, char *y, size_t y_stride) noexcept nogil:
    """`fl_gemm` in Fortran's column-major terms: y^T += w^T x^T."""
    cdef char n = b"N"
    cdef float one = 1
    cdef double one64 = 1
    cdef void *unit = <void *>&one if which == 0 else <void *>&one64
    cdef size_t item = 4 if which == 0 else 8
    cdef size_t r = 0, most = max(BLAS_WORK // (outputs * inputs), <size_t>1)
    cdef int m, k, count, ldx, ldy
    cdef int64_t m64, k64, count64, ldx64, ldy64
    m = m64 = outputs
    k = k64 = inputs
    ldx = ldx64 = x_stride
    ldy = ldy64 = y_stride
    PyThread_acquire_lock(blas_lock, WAIT_LOCK)
    while r < rows:
        count = count64 = min(most, rows - r)
        if blas32[which] != NULL:
            blas32[which](&n, &n, &m, &count, &k, unit, <void *>w, &m,
                          <void *>(x + r * x_stride * item), &ldx, unit,
                          <void *>(y + r * y_stride * item), &ldy)
        else:
            blas64[which](&n, &n, &m64, &count64, &k64, unit, <void *>w, &m64,
                          <void *>(x + r * x_stride * item), &ldx64, unit,
                          <void *>(y + r * y_stride * item), &ldy64)
        r += most
    PyThread_release_lock(blas_lock)


cdef void gemm_of_floats(size_t rows, size_t outputs, size_t inputs, const void *x, size_t x_stride,
                         const void *w, void *y, size_t y_stride) noexcept nogil:
    gemm(0, rows, outputs, inputs, <const char *>x, x_stride, w, <char *>y, y_stride)


cdef void gemm_of_doubles(size_t rows, size_t outputs, size_t inputs, const void *x,
                          size_t x_stride, const void *w, void *y, size_t y_stride) noexcept nogil:
    gemm(1, rows, outputs, inputs, <const char *>x, x_stride, w, <char *>y, y_stride)


def find_blas():
    """Look up sgemm and dgemm in ``scipy.linalg.cython_blas``, once.

    Returns
    -------
    str
        "LP64" or "ILP64" if both are there, else why they are not used.
    """
    global blas_found
    if blas_found is None:
        blas_found = look_up_blas()
    return blas_found


def renew_blas_lock():
    """In a forked child: another thread may have held the lock, which does not exist there."""
    global blas_lock
    blas_lock = PyThread_allocate_lock()


cdef object look_up_blas():
    cdef const char *signature
    cdef void *found[2]
    cdef set integers = set()
    try:
        from scipy.linalg import cython_blas
        capsules = [cython_blas.__pyx_capi__[name] for name in ("sgemm", "dgemm")]
        names = [PyCapsule_GetName(capsule) for capsule in capsules]
    except Exception as error:  # whatever a changed SciPy may raise, there is a way without it
        return f"not found: {error!r}"
    for i, real in enumerate("sd"):
        real = f"__pyx_t_5scipy_6linalg_11cython_blas_{real}"
        for integer in ("int", "int64_t"):
            known = (f"void (char *, char *, {integer} *, {integer} *, {integer} *, {real} *, "
                     f"{real} *, {integer} *, {real} *, {integer} *, {real} *, {real} *, "
                     f"{integer} *)")
            if names[i] == known.encode():
                integers.add(integer)
                break
        else:
            return f"unknown signature: {names[i].decode(errors='replace')}"
        signature = names[i]
        found[i] = PyCapsule_GetPointer(capsules[i], signature)
    if len(integers) > 1:
        return "integers of two sizes"
    for i in range(2):
        if "int" in integers:
            blas32[i] = <gemm32>found[i]
        else:
            blas64[i] = <gemm64>found[i]
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew_blas_lock)
    return "LP64" if "int" in integers else "ILP64"


cdef class Buffer:
    """Memory for the kernels: 64-byte aligned, zeroed, freed with the object."""

    cdef char *data
    cdef size_t size

    def __cinit__(self, size_t size):
        self.size = (size + 63) // 64 * 64 if size < <size_t>-64 else size
        self.data = <char *>aligned_alloc(64, self.size or 64)
        if self.data == NULL:
            raise MemoryError(f"{size} bytes of working memory")
        memset(self.data, 0, self.size)

    def __dealloc__(self):
        free(self.data)


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
    cdef size_t step_bytes          # of weights that one step of one row reads
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
        self.initial = packed.initial
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
        self.keeps_steps = all([layer.kind != "time_conv" for layer in packed.layers])
        if not (packed.initial.shape == (packed.state_size,)
                and packed.initial.dtype == self.dtype):
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
        if not (isinstance(array, np.ndarray) and array.flags.c_contiguous
                and array.flags.aligned and array.dtype == self.dtype):
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
        self.point(&to.table, layer.table)
        self.point(&to.weight, layer.weight)
        self.point(&to.bias, layer.bias)
        self.fill_panels(&to.linear, layer.linear)
        to.eps, to.positions = layer.eps, layer.positions
        to.combination = COMBINATIONS[layer.combination]
        to.pooling = POOLINGS[layer.pooling]
        to.state_offset, to.most_count = layer.state_offset, layer.most_count
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
        cdef const void *at = NULL if state is None else cnp.PyArray_DATA(state)
        return fl_output_steps(&self.model, self.kernel, T, whole, at)

    cdef int make_plan(self, size_t T, size_t B, fl_plan *plan) except -1:
        if fl_plan_run(&self.model, self.kernel, T, B, self.threads, plan) < 0:
            raise MemoryError(f"a run of {T} steps of {B} rows needs more memory than there can be")
        return 0

    cdef bint releases_gil(self, size_t T, size_t B) noexcept:
        """Whether a call is worth releasing the GIL; 6 rows share one reading of the weights."""
        return <double>self.step_bytes * T * ((B + 5) // 6) > GIL_BYTES

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
        if self.releases_gil(call.T, call.B):
            with nogil:
                fl_run(self.kernel, &self.model, call, self.team)
        else:
            fl_run(self.kernel, &self.model, call, self.team)
        call.plan = NULL
        # A run over a whole bidirectional sequence may have needed much: that is not kept.
        if scratch.size <= KEEP_BYTES:
            self.spare.append(scratch)
        return 0

    def run(self, cnp.ndarray x, cnp.ndarray y, cnp.ndarray state, cnp.ndarray lengths=None):
        """Run a whole sequence; the caller has checked everything but what memory safety needs.

        Parameters
        ----------
        x : array (T, B, I) of the model's dtype with unit stride along I, or int64 (T, B) of tokens
            in range
        y : array (T', B, O), likewise; written, and with T' of :meth:`output_steps`
        state : array (B, state_size), contiguous; advanced in place
        lengths : array (B,) of intp, none of more than T, optional
        """
        cdef cnp.npy_intp item = self.dtype.itemsize
        cdef fl_call call
        memset(&call, 0, sizeof(call))
        call.T, call.B = x.shape[0], state.shape[0]
        if not (y.ndim == 3 and state.ndim == 2 and x.ndim == 3 - self.model.takes_tokens
                and y.shape[2] == self.output_size
                and x.shape[1] == y.shape[1] == state.shape[0]
                and state.shape[1] == <Py_ssize_t>self.model.state_size
                and y.dtype == self.dtype == state.dtype and state.flags.c_contiguous
                and x.flags.aligned and y.flags.aligned
                and unit_stride(y, item) and y.flags.writeable
                and state.flags.writeable):
            raise ValueError("x, y and state do not fit the network")
        if call.B and y.shape[0] != self.output_steps(call.T, True, state[0]):
            raise ValueError("y does not have as many steps as the network gives")
        if lengths is not None:
            if not (lengths.ndim == 1 and lengths.shape[0] == state.shape[0]
                    and lengths.dtype == np.intp and lengths.flags.c_contiguous
                    and (lengths.size == 0 or 0 <= lengths.min() <= lengths.max() <= x.shape[0])):
                raise ValueError("lengths do not fit x")
            call.lengths = <const size_t *>cnp.PyArray_DATA(lengths)
        call.whole = True
        call.y, call.y_t, call.y_b = cnp.PyArray_DATA(y), y.strides[0] // item, y.strides[1] // item
        if self.model.takes_tokens:
            if x.dtype != np.int64:
                raise ValueError("tokens must be int64")
            check_tokens(x, self.input_size)
            call.tokens = <const int64_t *>cnp.PyArray_DATA(x)
            call.x_t, call.x_b = x.strides[0] // 8, x.strides[1] // 8
        else:
            if x.dtype != self.dtype or x.shape[2] != self.input_size or not unit_stride(x, item):
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
        self.execute(&call)


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


# Bytes of scratch that a network keeps for its next run.
cdef size_t KEEP_BYTES = 4 * 1024 * 1024


cdef bint unit_stride(cnp.ndarray array, cnp.npy_intp item):
    """Whether the last axis is contiguous; NumPy gives an axis of length one any stride."""
    return array.size == 0 or array.shape[2] == 1 or array.strides[2] == item


def check_tokens(cnp.ndarray tokens, Py_ssize_t known):
    """Raise ValueError if any of an int64 array of tokens lies outside [0, known)."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= known):
        wrong = np.argwhere((tokens < 0) | (tokens >= known))[0]
        where = ", ".join(str(int(i)) for i in wrong)
        raise ValueError(
            f"token {tokens[tuple(wrong)]} at index ({where}) is out of range; the model knows "
            f"tokens 0 to {known - 1}"
        )


cdef str shape_text(tuple shape):
    """A shape as Python writes it, with T for the axis that may be of any length."""
    sizes = ", ".join(["T" if n is None else str(n) for n in shape])
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


cdef bint fits(cnp.ndarray array, tuple shape):
    return array.ndim == len(shape) and all(
        [n is None or n == array.shape[i] for i, n in enumerate(shape)])


cdef str type_text(object x):
    name = type(x).__qualname__
    return name if type(x).__module__ == "builtins" else f"{type(x).__module__}.{name}"


def as_features(x, dtype, tuple shape):
    """`x` as a contiguous aligned array of `dtype` and `shape` (None: any), or an error that helps.

    Raises
    ------
    TypeError
        If x is not a plain NumPy array, or of another dtype or byte order.
    ValueError
        If its shape is another.
    """
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"x is a {type_text(x)}; expected a NumPy array of {dtype} and shape "
            f"{shape_text(shape)}; pass np.asarray(x, dtype=np.{dtype})"
        )
    if x.dtype != dtype or not x.dtype.isnative:
        given = x.dtype if x.dtype.isnative else f"{x.dtype.str} of another byte order"
        raise TypeError(
            f"x has dtype {given}; expected {dtype}, which the model computes in; "
            f"pass x.astype(np.{dtype})"
        )
    if not fits(x, shape):
        raise ValueError(f"x has shape {x.shape}; expected {shape_text(shape)}")
    return np.require(x, requirements=["C", "A"])


def as_tokens(x, tuple shape, Py_ssize_t known):
    """`x` as a contiguous int64 array of `shape` (None: any) of tokens in [0, known).

    Raises
    ------
    TypeError
        If x is neither an integer nor a plain NumPy array of integers.
    ValueError
        If its shape is another or a token is out of range.
    """
    if not isinstance(x, (np.ndarray, np.integer, int)) or isinstance(x, (bool, np.ma.MaskedArray)):
        raise TypeError(
            f"x is a {type_text(x)}; this model takes tokens: expected integers of shape "
            f"{shape_text(shape)}; pass np.asarray(x, dtype=np.int64)"
        )
    if isinstance(x, int) and not 0 <= x < known:
        raise ValueError(f"token {x} is out of range; the model knows tokens 0 to {known - 1}")
    array = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"x has dtype {array.dtype}; this model takes tokens: expected integers of shape "
            f"{shape_text(shape)}; pass x.astype(np.int64)"
        )
    if not fits(array, shape):
        raise ValueError(f"x has shape {(<object>array).shape}; expected {shape_text(shape)}")
    check_tokens(array, known)
    return np.require(array, np.int64, ["C", "A"])


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
    cdef int busy
    cdef bint release                   # whether a step releases the GIL
    cdef bint keeps_steps
    cdef int x_ndim, y_ndim
    cdef cnp.npy_intp x_shape[2]
    cdef cnp.npy_intp y_shape[2]
    cdef int64_t token

    def __cinit__(self, Network network, batch_size=None, *args, **kwargs):
        cdef size_t row = network.model.state_size * network.kernel.real_size
        cdef Py_ssize_t b, B
        if batch_size is not None and not 1 <= batch_size <= MOST_ROWS:
            if 0 < batch_size < 2**63:
                raise MemoryError(f"a stream of {batch_size} rows")
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
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
        """Put every row where each sequence starts."""
        cdef size_t row = self.network.model.state_size * self.network.kernel.real_size
        cdef Py_ssize_t b
        for b in range(self.rows):
            memcpy(self.state_block.data + b * row, cnp.PyArray_DATA(self.network.initial), row)

    cdef size_t output_steps(self, size_t T) noexcept:
        """Rows that the next T steps give."""
        if self.keeps_steps:
            return T
        return fl_output_steps(&self.network.model, self.network.kernel, T, False,
                               self.state_block.data)

    cdef int enter(self) except -1:
        if not fl_enter(&self.busy):
            raise RuntimeError(
                "this Stream is in use by another thread; one belongs to one thread at a time: "
                "give each thread its own with model.stream() or stream.clone()"
            )
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
                array = self.tokens_of_step(x)
                if array is None:
                    self.call.tokens = &self.token
                else:
                    self.call.tokens = <const int64_t *>cnp.PyArray_DATA(array)
            else:
                array = self.features_of_step(x)
                self.call.x = cnp.PyArray_DATA(array)
            if out is not None:
                result = self.check_out(out, self.y_ndim, self.y_shape, array)
            elif gives:
                result = cnp.PyArray_EMPTY(self.y_ndim, self.y_shape, self.network.type_num, 0)
            self.call.y = NULL if result is None else cnp.PyArray_DATA(result)
            if self.release:
                with nogil:
                    fl_run(self.network.kernel, &self.network.model, &self.call,
                           self.network.team)
            else:
                fl_run(self.network.kernel, &self.network.model, &self.call, self.network.team)
            return result if gives else None
        finally:
            fl_leave(&self.busy)

    cdef cnp.ndarray features_of_step(self, x):
        cdef cnp.ndarray array
        if cnp.PyArray_CheckExact(x):
            array = <cnp.ndarray>x
            if (cnp.PyArray_TYPE(array) == self.network.type_num and cnp.PyArray_ISCARRAY_RO(array)
                    and array.ndim == self.x_ndim
                    and cnp.PyArray_CompareLists(array.shape, self.x_shape, self.x_ndim)):
                return array
        return as_features(x, self.network.dtype, self.step_shape(self.x_ndim, self.x_shape))

    cdef cnp.ndarray tokens_of_step(self, x):
        """The tokens as an array, or None for a single one, which is then in `self.token`."""
        cdef cnp.ndarray array
        cdef const int64_t *tokens
        cdef Py_ssize_t i
        if self.x_ndim == 0 and type(x) is int and 0 <= x < <object>self.network.input_size:
            self.token = x
            return None
        if cnp.PyArray_CheckExact(x):
            array = <cnp.ndarray>x
            if (cnp.PyArray_TYPE(array) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY_RO(array)
                    and array.ndim == self.x_ndim
                    and cnp.PyArray_CompareLists(array.shape, self.x_shape, self.x_ndim)):
                tokens = <const int64_t *>cnp.PyArray_DATA(array)
                for i in range(self.rows):
                    if not 0 <= tokens[i] < self.network.input_size:
                        break
                else:
                    return array
        return as_tokens(x, self.step_shape(self.x_ndim, self.x_shape), self.network.input_size)

    cdef tuple step_shape(self, int ndim, cnp.npy_intp *shape):
        return tuple([shape[i] for i in range(ndim)])

    cdef cnp.ndarray check_out(self, out, int ndim, cnp.npy_intp *shape, cnp.ndarray x):
        """`out` if it can be written in place of a new array, else an error that helps."""
        cdef cnp.ndarray array
        cdef char *x_first
        cdef char *y_first
        if not cnp.PyArray_CheckExact(out) and (
                not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray)):
            raise TypeError(f"out is a {type_text(out)}; expected a NumPy array without a mask")
        array = <cnp.ndarray>out
        if cnp.PyArray_TYPE(array) != self.network.type_num or cnp.PyArray_ISBYTESWAPPED(array):
            raise TypeError(f"out has dtype {array.dtype.str}; expected {self.network.dtype}")
        if array.ndim != ndim or not cnp.PyArray_CompareLists(array.shape, shape, ndim):
            raise ValueError(
                f"out has shape {(<object>array).shape}; expected "
                f"{self.step_shape(ndim, shape)}")
        if not cnp.PyArray_ISCARRAY(array):
            raise ValueError(
                "out must be writeable, aligned and C-contiguous; make one with np.empty")
        if x is not None:
            x_first = <char *>cnp.PyArray_DATA(x)
            y_first = <char *>cnp.PyArray_DATA(array)
            if y_first < x_first + cnp.PyArray_NBYTES(x) and (
                    x_first < y_first + cnp.PyArray_NBYTES(array)):
                raise ValueError("out shares memory with x; give it memory of its own")
        return array

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
        """
        cdef cnp.ndarray array, result
        cdef fl_call call
        cdef cnp.npy_intp y_shape[3]
        cdef int i
        self.enter()
        try:
            shape = (None, *self.step_shape(self.x_ndim, self.x_shape))
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
                result = self.check_out(out, self.y_ndim + 1, y_shape, array)
            call.T, call.B = array.shape[0], self.rows
            call.x_b, call.y_b = self.call.x_b, self.call.y_b
            call.x_t, call.y_t = call.x_b * self.rows, call.y_b * self.rows
            call.y = cnp.PyArray_DATA(result)
            call.state = self.call.state
            if call.T:
                self.network.execute(&call)
                self.call.ran = call.ran
            return result
        finally:
            fl_leave(&self.busy)

    def reset(self):
        """Put the state of every row where each sequence starts."""
        self.enter()
        self.start()
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

    def write_block(self, block):
        """Replace the state of all rows by a (B, state_size) array of the model's dtype."""
        self.enter()
        try:
            (<object>self.state_view())[...] = block
        finally:
            fl_leave(&self.busy)
