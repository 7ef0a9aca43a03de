# Places: the arrays that a call reads and writes, checked, and where the core finds their rows.

from collections.abc import Mapping

from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlstm cimport fl_rows

cdef enum:
    NO_AXIS = -1   # in place of a number of steps or streams: an array without that axis
    ANY = -2       # in place of a number of steps: as many as the first array has


cdef inline int shape_of(Port port, Py_ssize_t T, Py_ssize_t B, cnp.npy_intp *shape) noexcept:
    """The shape of T rows of B streams, either of which may be NO_AXIS; how many axes it has."""
    cdef int n = 0, i
    if T != NO_AXIS:
        shape[n] = T
        n += 1
    if B != NO_AXIS:
        shape[n] = B
        n += 1
    for i in range(port.ndim):
        shape[n + i] = port.axes[i + 2]
    return n + port.ndim


@cython.final
cdef class Places:
    """Where a call of a network finds the rows of its inputs and outputs."""

    cdef Ports ports
    cdef Buffer table
    cdef fl_rows *inputs            # (inputs,)
    cdef fl_rows *outputs           # (outputs,)
    cdef int64_t token              # that a step reads, given as an int

    def __cinit__(self, Ports ports):
        self.ports = ports
        self.table = Buffer((ports.n_inputs + ports.n_outputs) * sizeof(fl_rows))
        self.inputs = <fl_rows *>self.table.data
        self.outputs = self.inputs + ports.n_inputs

    cdef int put(self, fl_rows *place, cnp.ndarray array, bint by_steps, bint by_streams) except -1:
        """Place an array whose rows lie in one piece, with either axis in front or without it."""
        cdef cnp.npy_intp item = cnp.PyArray_ITEMSIZE(array)
        place.data = cnp.PyArray_DATA(array)
        place.t = array.strides[0] // item if by_steps else 0
        place.b = array.strides[by_steps] // item if by_streams else 0
        return 0

    cdef int put_all(self, inputs, outputs) except -1:
        """Place arrays (T, B, ...) of the inputs with a row for each step, and of the outputs."""
        for number, array in zip(self.ports.moving_numbers, inputs):
            self.put(self.inputs + <size_t>number, array, True, True)
        for number, array in enumerate(outputs):
            self.put(self.outputs + <size_t>number, array, True, True)
        return 0

    cdef int put_held(self, list held) except -1:
        """Place arrays (B, ...) of the inputs that are held for a sequence."""
        for number, array in zip(self.ports.held_numbers, held):
            self.put(self.inputs + <size_t>number, array, False, True)
        return 0

    cdef list read(self, x, Py_ssize_t T, Py_ssize_t B, bint check=True):
        """Arrays (T, B, ...) of the inputs with a row for each step, as a caller gives them.

        They are to live as long as the call. Without `check` the range of tokens is left to
        check_tokens.
        """
        cdef tuple leading = () if T == NO_AXIS else (None if T == ANY else T,)
        cdef list arrays
        if B != NO_AXIS:
            leading = (*leading, B)
        arrays = self.ports.arrays_of(x, leading, check, False)
        for number, array in zip(self.ports.moving_numbers, arrays):
            self.put(self.inputs + <size_t>number, array, T != NO_AXIS, B != NO_AXIS)
        return arrays

    cdef list write(self, out, list rows, Py_ssize_t B, list read, bint zero=False,
                    bint by_stream=False):
        """What a call gives: of each output the caller's own array, if there is one, or a new one.

        Parameters
        ----------
        out : array, or mapping of str to array, or None
            What the caller gave.
        rows : list of int
            Of each output: T, or NO_AXIS.
        B : int
            Or NO_AXIS.
        read : list of array
            Those that the call reads, which share no memory with what it writes.
        zero : bool
            Whether the arrays are zero at first.
        by_stream : bool
            Whether the caller's may lie by stream, as :func:`output_of` says.
        """
        cdef Ports ports = self.ports
        cdef cnp.npy_intp shape[MOST_AXES]
        cdef cnp.ndarray array
        cdef list arrays = [], given = []
        cdef Port port
        cdef bint single = ports.n_outputs == 1
        cdef int ndim
        if out is not None and not single:
            if not isinstance(out, Mapping):
                raise TypeError(f"out is a {type_text(out)}; this model has several outputs: "
                                f"expected a mapping of their names to arrays")
            if unknown := set(out) - {port.name for port in ports.outputs}:
                raise ValueError(f"out has {min(unknown, key=str)!r}, which is no output")
        for number, T in enumerate(rows):
            port = <Port>ports.outputs[number]
            ndim = shape_of(port, T, B, shape)
            to = out if single or out is None else out.get(port.name)
            if to is None:
                array = cnp.PyArray_EMPTY(ndim, shape, ports.type_num, 0)
            else:
                name = "out" if single else f"out[{port.name!r}]"
                array = output_of(ports, to, name, ndim, shape, by_stream)
                for x in read:
                    check_apart(name, array, x)
                if any([overlap(array, other) for other in arrays]):
                    raise ValueError(f"{name} shares memory with another of them")
            self.put(self.outputs + <size_t>number, array, T != NO_AXIS, B != NO_AXIS)
            arrays.append(array)
            given.append(array if to is None else to)
        if zero:
            for made in arrays:
                made.fill(0)
        return given

    cdef object named(self, list results):
        """What a call returns: the one output, or a mapping of their names."""
        if self.ports.n_outputs == 1:
            return results[0]
        return {port.name: result for port, result in zip(self.ports.outputs, results)}

    # One step of a model of one input and one output: the usual case, which makes no list.

    cdef inline object read_step(self, x, int ndim, cnp.npy_intp *shape):
        """The row of a step, which is to live as long as the call; None of a token that is an int.

        Its shape (ndim,) is as of shape_of.
        """
        cdef Ports ports = self.ports
        cdef Port port = ports.x
        self.inputs[0].b = port.count
        if port.tokens and ndim == 0 and type(x) is int and 0 <= x < <object>port.tokens:
            self.token = x
            self.inputs[0].data = &self.token
            return None
        if not (are_tokens(x, ndim, shape, port.tokens) if port.tokens else
                is_plain(x, ports.type_num, ndim, shape)):
            x = ports.as_rows(port, x, as_tuple(ndim - port.ndim, shape))
        self.inputs[0].data = cnp.PyArray_DATA(<cnp.ndarray>x)
        return x

    cdef inline object write_step(self, out, int ndim, cnp.npy_intp *shape, x, bint zero):
        """The row that a step gives, the caller's own or a new one; x is what it reads."""
        cdef Ports ports = self.ports
        cdef cnp.ndarray result
        if out is None:
            result = cnp.PyArray_EMPTY(ndim, shape, ports.type_num, 0)
        else:
            result = output_of(ports, out, "out", ndim, shape)
            if x is not None:
                check_apart("out", result, x)
        self.outputs[0].data, self.outputs[0].b = cnp.PyArray_DATA(result), ports.y.count
        if zero:
            memset(cnp.PyArray_DATA(result), 0, cnp.PyArray_NBYTES(result))
        return result if out is None else out
