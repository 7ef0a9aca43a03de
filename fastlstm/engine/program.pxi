# Programs: checked and decoded, packed with their tensors for an instruction set.

from fastlstm cimport (
    FL_BFLOAT16, FL_COUNT_OUTPUTS, FL_FLOAT16, FL_FLOAT32, FL_FLOAT64, FL_INT8, FL_OK,
    FL_TOO_LARGE, fl_count, fl_error, fl_error_text, fl_model, fl_model_config, fl_program,
    fl_program_init, fl_program_size, fl_tensor_data, fl_type, fl_vocabulary,
)
from fastlstm.core cimport (
    fl_find, fl_kernel, fl_kernels, fl_model_init_for, fl_model_size_for, fl_source,
    fl_source_rows, fl_source_scratch, fl_target, fl_target_name,
)

cdef enum:
    MESSAGE_BYTES = 512


# Of arrays of tensors; uint16 are the bits of bfloat16, which NumPy does not have.
TYPES = {
    np.dtype(np.float32): FL_FLOAT32,
    np.dtype(np.float64): FL_FLOAT64,
    np.dtype(np.float16): FL_FLOAT16,
    np.dtype(np.uint16): FL_BFLOAT16,
    np.dtype(np.int8): FL_INT8,
}


cdef fl_type type_of(dtype) except? FL_FLOAT64:
    return TYPES[np.dtype(dtype)]


def kernels(size_t real_size=4, bint of_floats=False):
    """Kernels this machine can run, best first.

    Parameters
    ----------
    real_size : {4, 8}
        Bytes of one number.
    of_floats : bool, default False
        Whether those are left out that only have products of int8 of their own.

    Returns
    -------
    list of (str, int)
        Name and lanes.
    """
    found = []
    cdef size_t i = 0, j, n = 0
    cdef bint shared, here
    while fl_kernels[n] != NULL:
        n += 1
    while fl_kernels[i] != NULL:
        shared = False
        for j in range(i + 1, n):
            shared |= of_floats and fl_kernels[j].run == fl_kernels[i].run
        here = fl_find(fl_kernels[i].name, real_size) != NULL
        if fl_kernels[i].real_size == real_size and here and not shared:
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


def targets():
    """Names of the instruction sets that a model can be written for as C, by `source_of`."""
    names = []
    while fl_target_name(len(names)) != NULL:
        names.append(fl_target_name(len(names)).decode())
    return names


def vocabulary():
    """What a program can say, as the core has it: ``plan.operations`` has the same."""
    cdef size_t size = fl_vocabulary(NULL, 0)
    cdef Buffer text = Buffer(size + 1)
    fl_vocabulary(text.data, size + 1)
    return text.data[:size].decode()


cdef object failed(fl_error error, const char *message):
    """The exception of an error of the core's, which says what was wrong if it could."""
    text = message.decode(errors="replace") if message != NULL and message[0] else ""
    kind = MemoryError if error == FL_TOO_LARGE else ValueError
    return kind(text or fl_error_text(error).decode())


@cython.final
cdef class Program:
    """A program, checked and decoded.

    Parameters
    ----------
    program : bytes
        As ``plan.Program.to_bytes`` gives them.

    Raises
    ------
    ValueError
        If they are no program, or one that computes what cannot be.
    """

    cdef Buffer block               # what `decoded` is a part of
    cdef const fl_program *decoded

    def __cinit__(self, bytes program):
        cdef char message[MESSAGE_BYTES]
        cdef size_t size = 0
        cdef const char *words = program
        message[0] = 0
        cdef fl_error error = fl_program_size(words, len(program), &size)
        if error == FL_OK:
            self.block = Buffer(size)
            error = fl_program_init(words, len(program), self.block.data, self.block.size,
                                    &self.decoded, message, MESSAGE_BYTES)
        if error != FL_OK:
            raise failed(error, message)

    def packed_bytes(self, dtype, str isa, bint constant=False):
        """Bytes that it takes packed for an instruction set; `constant` as of :class:`Network`.

        Raises
        ------
        ValueError
            If there is no such instruction set here.
        """
        return self.bytes_for(NULL, dtype, isa, constant)

    cdef size_t bytes_for(self, const fl_kernel *target, dtype, str isa, bint constant) except? 0:
        cdef char message[MESSAGE_BYTES]
        cdef fl_model_config config
        cdef size_t size = 0
        name = isa.encode()
        config.struct_size, config.type, config.isa = sizeof(config), type_of(dtype), name
        config.keeps_tensors = constant
        message[0] = 0
        cdef fl_error error = fl_model_size_for(target, self.decoded, &config, &size, message,
                                                MESSAGE_BYTES)
        if error != FL_OK:
            raise failed(error, message)
        return size


@cython.final
cdef class Packed:
    """A program packed with its tensors: what calls compute with.

    Parameters are those of Network; where `foreign` is true, the instruction set is one of
    `targets()`, which need not be there, and nothing is computed.
    """

    cdef Program program
    cdef Buffer block               # what `model` is a part of
    cdef const fl_model *model
    cdef list kept                  # arrays that `model` reads, if any

    def __cinit__(self, Program program, tensors, dtype, str isa, bint constant,
                  bint foreign=False):
        cdef char message[MESSAGE_BYTES]
        cdef Buffer table = Buffer(len(tensors) * sizeof(fl_tensor_data))
        cdef fl_tensor_data *entry = <fl_tensor_data *>table.data
        cdef fl_model_config config
        cdef size_t n = len(tensors)
        cdef fl_error error
        cdef cnp.ndarray array
        cdef list kept = []
        cdef const fl_kernel *target = NULL
        name = isa.encode()
        if foreign:
            target = fl_target(name)
        config.struct_size = sizeof(config)
        config.type, config.isa, config.keeps_tensors = type_of(dtype), name, constant
        message[0] = 0
        for tensor in tensors:
            array = np.require(tensor, requirements=["C", "A"])
            if array.dtype not in TYPES:
                raise ValueError(
                    f"a tensor is of {array.dtype}; expected {', '.join(map(str, TYPES))}"
                )
            kept.append(array)
            entry.data, entry.count = cnp.PyArray_DATA(array), array.size
            entry.type = type_of(array.dtype)
            entry += 1
        self.program = program
        self.kept = kept if constant else []
        self.block = Buffer(program.bytes_for(target, dtype, isa, constant))
        with nogil:
            error = fl_model_init_for(target, program.decoded, &config,
                                      <fl_tensor_data *>table.data, n, self.block.data,
                                      self.block.size, &self.model, message, MESSAGE_BYTES)
        if error != FL_OK:
            raise failed(error, message)


def source_of(Program program, tensors, str isa):
    """A program and its tensors as C whose structs and weights are constants.

    Parameters
    ----------
    program : Program
    tensors : sequence of array
        As of Network, float32.
    isa : str
        One of `targets()`.

    Returns
    -------
    text : str
        What ``core/constant.h`` runs.
    scratch_bytes : int
        Scratch memory that it takes.
    rows : list of (int, int)
        Rows of each output that a step, and the end of a sequence, has at most.

    Raises
    ------
    MemoryError
        If a size is too large.
    """
    cdef Packed packed = Packed(program, tensors, np.float32, isa, False, foreign=True)
    cdef const fl_model *model = packed.model
    cdef size_t size = fl_source(model, NULL, 0)
    if not size:
        raise MemoryError("a size of the model is too large for C whose sizes are constants")
    cdef Buffer text = Buffer(size + 1)
    fl_source(model, text.data, size + 1)
    rows = [
        (fl_source_rows(model, o, False), fl_source_rows(model, o, True))
        for o in range(fl_count(program.decoded, FL_COUNT_OUTPUTS))
    ]
    return text.data[:size].decode(), fl_source_scratch(model), rows
