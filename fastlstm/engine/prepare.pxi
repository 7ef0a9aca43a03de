# What of a step does not need its input, made before.

from fastlstm cimport FL_OK, fl_call, fl_drop, fl_error, fl_prepare, fl_prepared_size


cdef int prepare_states(Network network, fl_call *call, Scratch scratch) except -1:
    """Make it for a call whose B, states and prepared are set."""
    cdef Packed packed = scratch.packed
    cdef fl_error error
    call.struct_size, call.T, call.scratch = sizeof(fl_call), 0, scratch.made
    call.threads = NULL if network.team == NULL else &network.threads
    if network.releases_gil(1, call.B):
        with nogil:
            error = fl_prepare(packed.model, call)
    else:
        error = fl_prepare(packed.model, call)
    if error != FL_OK:
        raise failed(error, NULL)
    return 0
