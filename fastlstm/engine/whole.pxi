# Whole sequences: their rows counted, their steps run, and their ends.

from libc.string cimport memset

from fastlstm cimport fl_call


cdef int set_lengths(fl_call *call, cnp.ndarray lengths) except -1:
    if lengths is None:
        return 0
    lengths = base_of(lengths)
    if not (lengths.ndim == 1 and <size_t>lengths.shape[0] == call.B
            and is_of(lengths, cnp.NPY_INTP) and cnp.PyArray_ISCARRAY_RO(lengths)
            and (call.B == 0 or 0 <= lengths.min() <= lengths.max() <= call.T)):
        raise ValueError("lengths do not fit x")
    call.lengths = <const size_t *>cnp.PyArray_DATA(lengths)
    return 0


cdef int set_resets(Network network, fl_call *call, cnp.ndarray resets) except -1:
    if not (resets.ndim == 2 and <size_t>resets.shape[0] == call.T
            and <size_t>resets.shape[1] == call.B and is_of(resets, cnp.NPY_UINT8)
            and cnp.PyArray_ISCARRAY_RO(resets)
            and network.keeps_steps and not network.folds and not network.looks_ahead):
        raise ValueError("resets do not fit x or the network")
    call.resets = <const unsigned char *>cnp.PyArray_DATA(resets)
    return 0


def count_rows(Network network not None, cnp.ndarray block not None, size_t T,
               cnp.ndarray lengths=None, *, bint whole=False, bint ending=False):
    """Rows that the next T steps of states (B, state_size) give, or where `ending`, their end.

    Parameters
    ----------
    network : Network
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
    cdef Buffer rows = network.pointers(network.checked_block(block))
    made = np.zeros((network.n_outputs, block.shape[0]), np.int64)
    memset(&call, 0, sizeof(call))
    call.T, call.B, call.whole = 0 if ending else T, block.shape[0], whole
    set_lengths(&call, lengths)
    network.count_into(&call, <void **>rows.data, <size_t *>cnp.PyArray_DATA(made), ending)
    return made


cdef int check_outputs(Network network, outputs, cnp.ndarray block, Py_ssize_t T, lengths,
                       bint ending) except -1:
    """Check that outputs have room for the rows of each row of the batch."""
    counts = None
    if network.folds or not network.keeps_steps:
        counts = count_rows(network, block, T, lengths, whole=True, ending=ending)
    for number, (port, array) in enumerate(zip(network.outputs, outputs, strict=True)):
        network.check_rows(port, array, len(array), block.shape[0], network.dtype)
        least = (0 if ending else T) if counts is None else counts[number].max(initial=0)
        if not cnp.PyArray_ISWRITEABLE(array) or len(array) < least:
            raise ValueError(f"output {port.name!r} cannot take as many rows as there are")
    return 0


def run_whole(Network network not None, inputs, outputs, cnp.ndarray block not None,
              cnp.ndarray lengths=None, cnp.ndarray resets=None, held=()):
    """Run the steps of whole sequences, all but their ends.

    The caller has checked everything but what memory safety needs.

    Parameters
    ----------
    network : Network
    inputs : sequence of array (T, B, ...)
        Of each input with a row for each step, whose rows are contiguous.
    outputs : sequence of array (T', B, ...), likewise
        Written, of each output; T' as :func:`count_rows` tells, the most of any row.
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
    cdef Places places = Places(network)
    cdef Buffer rows = network.pointers(network.checked_block(block))
    for port, array in zip(network.moving, inputs, strict=True):
        network.check_rows(port, array, T, B, np.dtype(np.int64) if port.tokens else network.dtype)
    memset(&call, 0, sizeof(call))
    call.T, call.B, call.whole = T, B, True
    set_lengths(&call, lengths)
    check_outputs(network, outputs, block, T, lengths, False)
    if B == 0 or T == 0:
        return
    places.put_all(inputs, outputs)
    call.inputs, call.outputs = places.inputs, places.outputs
    call.states = <void *const *>rows.data
    if resets is not None:
        set_resets(network, &call, resets)
        for port, array in zip(network.held, held, strict=True):
            network.check_held(port, array, B)
        places.put_held(list(held))
    network.execute(&call)


def flush_whole(Network network not None, outputs, cnp.ndarray block not None):
    """Write the rows that are due at the ends of whole sequences; `block` stays as it is.

    Parameters
    ----------
    network : Network
    outputs : sequence of array (T', B, ...)
        Of each output; T' as :func:`count_rows` tells with `ending`, the most of any row.
    block : array (B, state_size), contiguous
    """
    cdef fl_call call
    cdef Places places = Places(network)
    cdef Buffer rows = network.pointers(network.checked_block(block))
    check_outputs(network, outputs, block, 0, None, True)
    places.put_all((), outputs)
    memset(&call, 0, sizeof(call))
    call.B, call.whole, call.outputs = block.shape[0], True, places.outputs
    network.flush_rows(&call, <void **>rows.data)
