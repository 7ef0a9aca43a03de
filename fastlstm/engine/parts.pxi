# What a state holds, by the numbers of its parts.

from fastlstm cimport (
    FL_COUNT_PARTS, FL_OK, fl_count, fl_error, fl_part_shape, fl_state_part, fl_state_read,
    fl_state_write,
)


cdef size_t part_count(Network network) noexcept:
    return fl_count(network.packed.program.decoded, FL_COUNT_PARTS)


def part_counts(Network network not None):
    """Of each part whether it is a count, an integer."""
    return [bool(fl_state_part(network.packed.program.decoded, number).is_count)
            for number in range(part_count(network))]


def read_parts(Network network not None, cnp.ndarray block not None):
    """The parts of states (B, state_size): arrays (rows, B, count), or int64 (1, B, 1)."""
    cdef const char *state = <const char *>cnp.PyArray_DATA(network.checked_block(block))
    cdef Py_ssize_t B = block.shape[0], b
    cdef Packed packed = network.packed
    cdef fl_part_shape part
    cdef cnp.ndarray rows
    cdef size_t number, size
    cdef fl_error error
    made = []
    for number in range(part_count(network)):
        part = fl_state_part(packed.program.decoded, number)
        dtype = np.int64 if part.is_count else network.dtype
        rows = np.empty((B, part.rows, part.count), dtype)
        size = part.rows * part.count * cnp.PyArray_ITEMSIZE(rows)
        for b in range(B):
            error = fl_state_read(packed.model, state + b * network.state_bytes, number,
                                  cnp.PyArray_BYTES(rows) + b * size, size)
            if error != FL_OK:
                raise failed(error, NULL)
        made.append(np.ascontiguousarray(rows.swapaxes(0, 1)))
    return made


def write_parts(Network network not None, cnp.ndarray block not None, dict parts not None):
    """Put parts, arrays as of :func:`read_parts`, into the states (B, state_size).

    Parameters
    ----------
    network : Network
    block : array (B, state_size)
    parts : dict of str to array
        In the order of their numbers; the names are those of errors.

    Returns
    -------
    array (B, state_size)
        `block`.

    Raises
    ------
    ValueError
        If a number is one that no state can have. The block may then be half written.
    """
    cdef char *state = <char *>cnp.PyArray_DATA(network.checked_block(block))
    cdef Py_ssize_t B = block.shape[0], b
    cdef fl_part_shape part
    cdef cnp.ndarray rows
    cdef size_t number, size, n = part_count(network)
    cdef Packed packed = network.packed
    cdef bint counts
    if len(parts) != <Py_ssize_t>n:
        raise ValueError(f"a state has {n} parts, not {len(parts)}")
    for counts in (True, False):  # a ring is written where its count says
        for number, (name, given) in enumerate(parts.items()):
            part = fl_state_part(packed.program.decoded, number)
            if part.is_count != counts:
                continue
            rows = np.ascontiguousarray(
                np.asarray(given, np.int64 if counts else network.dtype).swapaxes(0, 1))
            if not fits(rows, (B, part.rows, part.count)):
                raise ValueError(f"state {name!r} does not fit the network")
            size = part.rows * part.count * cnp.PyArray_ITEMSIZE(rows)
            for b in range(B):
                if fl_state_write(packed.model, state + b * network.state_bytes, number,
                                  cnp.PyArray_BYTES(rows) + b * size, size) != FL_OK:
                    raise ValueError(
                        f"state {name!r} holds {rows[b].ravel()[0]}; expected a count of steps "
                        f"that a state of this model can have")
    return block
