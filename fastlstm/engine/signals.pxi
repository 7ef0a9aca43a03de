# Signals during a long call: their handlers run now and then, and what one raises ends the call.

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint64_t

from fastlstm.core cimport fl_generation


cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass
    PyThreadState *PyEval_SaveThread() nogil
    void PyEval_RestoreThread(PyThreadState *thread) nogil
    int check_signals "PyErr_CheckSignals"() except -1
    int signals_raise "PyErr_CheckSignals"() nogil


# Seconds between two looks. Each takes the GIL, for which a thread that runs Python code may let
# the call wait 5 ms.
cdef double LOOK_SECONDS = 0.04

cdef struct fl_asker:
    PyThreadState *thread
    double due           # seconds of the monotonic clock at which to look next

cdef unsigned long main_thread
cdef uint64_t main_thread_is_of = 0  # 1 + the generation of the process whose it is


cdef bint is_main_thread() except -1:
    """Whether handlers run in this thread: they do in no other."""
    global main_thread, main_thread_is_of
    if main_thread_is_of != fl_generation() + 1:
        import threading
        main_thread = threading.main_thread().ident
        main_thread_is_of = fl_generation() + 1
    return PyThread_get_thread_ident() == main_thread


cdef int ask_signals(void *who) noexcept nogil:
    """`fl_watch.ask`: whether a handler raised. The error is then that of the thread."""
    cdef fl_asker *asker = <fl_asker *>who
    cdef int raised
    if monotonic() < asker.due:
        return 0
    PyEval_RestoreThread(asker.thread)
    raised = signals_raise()
    asker.thread = PyEval_SaveThread()
    asker.due = monotonic() + LOOK_SECONDS
    return raised
