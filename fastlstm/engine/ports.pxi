# Ports: what a network reads and gives, by name, and arrays of it as a caller gives them.

from collections.abc import Mapping

from fastlstm cimport (
    FL_COUNT_INPUTS, FL_COUNT_OUTPUTS, fl_count, fl_input_shape, fl_output_shape, fl_row_shape,
)

cdef enum:
    MOST_AXES = 8  # of a row and, in front, of time and batch


cdef class Port:
    """An input or an output: a name, and how its rows look.

    Parameters
    ----------
    name : str
    shape : tuple of int
        The axes of a row.
    step_rows : int
        Of an output: rows that a step gives at most, if that is the same for every step; 0: if not.
    """

    cdef readonly str name
    cdef readonly tuple shape
    cdef readonly Py_ssize_t step_rows
    cdef readonly size_t tokens   # of an input: how many it knows, or 0
    cdef readonly bint held       # whether it has one row for a sequence
    cdef readonly size_t count    # numbers of a row
    cdef int ndim
    cdef cnp.npy_intp axes[MOST_AXES]  # those of a row, behind two that are free

    def __cinit__(self, str name, shape, Py_ssize_t step_rows=1):
        cdef int i
        self.name, self.shape, self.step_rows = name, tuple(shape), step_rows
        self.ndim = len(self.shape)
        if self.ndim > MOST_AXES - 2:
            raise ValueError(f"{name!r} has rows of {self.ndim} axes")
        self.count = 1
        for i in range(self.ndim):
            self.axes[i + 2] = self.shape[i]
            self.count *= <size_t>self.axes[i + 2]

    cdef int match(self, fl_row_shape found) except -1:
        if found.count != self.count:
            raise ValueError(
                f"{self.name!r} has rows of {self.count} numbers, the program of {found.count}")
        self.tokens, self.held = found.tokens, found.held
        return 0


cdef object several_rows(Port port):
    """The exception of a step that may give several rows of an output of no whole rate.

    No step of a stream does that where `step_rows` is 1, but a state may have been given that no
    stream leaves.
    """
    return ValueError(
        f"output {port.name!r} does not have a whole number of rows for a step; expected run(x) of "
        f"a block of steps")


cdef list by_name(tuple ports, given, str what):
    """The values of a mapping, in the order of the ports, each of which it must have."""
    names = [port.name for port in ports]
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{what} is a {type_text(given)}; expected a mapping to arrays of "
            f"{', '.join(map(repr, names)) or 'nothing, which this model holds'}")
    if wrong := sorted(set(names) ^ set(given), key=str):
        raise ValueError(
            f"{what} has {', '.join(map(repr, given)) or 'nothing'}; expected exactly "
            f"{', '.join(map(repr, names)) or 'nothing'}: {wrong[0]!r:.80} is "
            f"{'missing' if wrong[0] in names else 'unknown'}")
    return [given[name] for name in names]


cdef class Ports:
    """The inputs and outputs of a network, in the order of its program; the base of Network."""

    cdef readonly object dtype
    cdef int type_num               # NumPy's number of it
    cdef readonly tuple inputs, outputs   # of Port
    cdef readonly tuple moving, held      # inputs with a row for each step, and for each sequence
    cdef tuple moving_numbers, held_numbers
    cdef size_t n_inputs, n_outputs
    cdef bint is_single             # one array in, one out
    cdef Port x, y                  # the first that has a row for each step, and the first output
    cdef bint one_row_a_step        # whether a step never gives several rows of an output

    cdef int match(self, Program program, dtype, inputs, outputs) except -1:
        """Be those of a program, or raise ValueError if they are not."""
        cdef size_t i
        self.dtype = np.dtype(dtype)
        self.type_num = self.dtype.num
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.n_inputs = fl_count(program.decoded, FL_COUNT_INPUTS)
        self.n_outputs = fl_count(program.decoded, FL_COUNT_OUTPUTS)
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
        return 0

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

    cdef int check_held(self, Port port, cnp.ndarray array, Py_ssize_t B) except -1:
        if not (is_of(array, cnp.NPY_INT64 if port.tokens else self.type_num)
                and cnp.PyArray_ISCARRAY_RO(array) and fits(array, (B, *port.shape))):
            raise ValueError(f"{port.name!r} does not fit the network")
        return 0

    cdef int check_rows(self, Port port, cnp.ndarray array, Py_ssize_t T, Py_ssize_t B,
                        dtype) except -1:
        if not (array.ndim == 2 + port.ndim and array.shape[0] == T and array.shape[1] == B
                and is_of(array, dtype.num) and cnp.PyArray_ISALIGNED(array) and has_rows(array, 2)
                and cnp.PyArray_CompareLists(array.shape + 2, port.axes + 2, port.ndim)):
            raise ValueError(f"{port.name!r} does not fit the network")
        return 0
