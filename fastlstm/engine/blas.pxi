# BLAS, of SciPy's Cython interface. Nothing links to it: the functions are looked up when a kernel
# wants them, and their absence or an unknown signature only means that the kernel's own loops run.

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_release_lock, PyThread_type_lock,
    WAIT_LOCK)
from libc.stdint cimport int64_t

import os

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

# Inputs of one call. A kernel of a BLAS may sum all inputs one after the other, and its error then
# grows with their number: 256 inputs in one go lose up to 1.8 times what torch does, blocks of 64
# at most 1.27 times (the models of TestRounding under every core type of OpenBLAS). Shorter blocks
# gain nothing there, lose at 4096 inputs, whose blocks are many, and are slower.
cdef size_t BLAS_INPUTS = 64


cdef void gemm(int which, size_t rows, size_t outputs, size_t inputs, const char *x,
               size_t x_stride, const char *w, char *y, size_t y_stride) noexcept nogil:
    """`fl_gemm` in Fortran's column-major terms: y^T += w^T x^T, a block of inputs at a time."""
    cdef char n = b"N"
    cdef float one = 1
    cdef double one64 = 1
    cdef void *unit = <void *>&one if which == 0 else <void *>&one64
    cdef size_t item = 4 if which == 0 else 8
    cdef size_t i, r = 0, most = max(BLAS_WORK // (outputs * min(inputs, BLAS_INPUTS)), <size_t>1)
    cdef int m, k, count, ldx, ldy
    cdef int64_t m64, k64, count64, ldx64, ldy64
    cdef void *x_block
    cdef void *w_block
    m = m64 = outputs
    ldx = ldx64 = x_stride
    ldy = ldy64 = y_stride
    PyThread_acquire_lock(blas_lock, WAIT_LOCK)
    while r < rows:
        count = count64 = min(most, rows - r)
        i = 0
        while i < inputs:
            k = k64 = min(BLAS_INPUTS, inputs - i)
            x_block = <void *>(x + (r * x_stride + i) * item)
            w_block = <void *>(w + i * outputs * item)
            if blas32[which] != NULL:
                blas32[which](&n, &n, &m, &count, &k, unit, w_block, &m, x_block, &ldx, unit,
                              <void *>(y + r * y_stride * item), &ldy)
            else:
                blas64[which](&n, &n, &m64, &count64, &k64, unit, w_block, &m64, x_block, &ldx64,
                              unit, <void *>(y + r * y_stride * item), &ldy64)
            i += BLAS_INPUTS
        r += most
    PyThread_release_lock(blas_lock)


cdef void gemm_of_floats(size_t rows, size_t outputs, size_t inputs, const void *x, size_t x_stride,
                         const void *w, void *y, size_t y_stride) noexcept nogil:
    gemm(0, rows, outputs, inputs, <const char *>x, x_stride, <const char *>w, <char *>y,
         y_stride)


cdef void gemm_of_doubles(size_t rows, size_t outputs, size_t inputs, const void *x,
                          size_t x_stride, const void *w, void *y, size_t y_stride) noexcept nogil:
    gemm(1, rows, outputs, inputs, <const char *>x, x_stride, <const char *>w, <char *>y,
         y_stride)


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
    PyThread_acquire_lock(blas_lock, WAIT_LOCK)  # what a thread that has it reads is whole
    for i in range(2):
        if "int" in integers:
            blas32[i] = <gemm32>found[i]
        else:
            blas64[i] = <gemm64>found[i]
    PyThread_release_lock(blas_lock)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew_blas_lock)
    return "LP64" if "int" in integers else "ILP64"
