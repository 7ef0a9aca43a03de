# What a caller gives, checked: features, tokens and outputs.

from libc.stdint cimport int64_t


def check_tokens(cnp.ndarray tokens, Py_ssize_t known, cnp.ndarray lengths=None):
    """Raise ValueError if any of an int64 array of tokens lies outside [0, known).

    Of tokens (T, B, ...) with lengths (B,), what lies behind them is not looked at.
    """
    if lengths is not None:
        there = np.arange(tokens.shape[0])[:, None] < lengths
        axes = [1] * (tokens.ndim - 2)
        tokens = np.where(there.reshape(*(<object>there).shape, *axes), tokens, 0)
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


cdef inline cnp.ndarray base_of(cnp.ndarray array):
    """The array itself of one of a subclass, whose attributes may say anything."""
    return array if cnp.PyArray_CheckExact(array) else np.asarray(array)


cdef inline bint is_of(cnp.ndarray array, int type_num):
    """Whether its numbers are of a type, in the byte order of this machine."""
    return cnp.PyArray_TYPE(array) == type_num and not cnp.PyArray_ISBYTESWAPPED(array)


def as_plain(str name, x, str expected):
    """`x` as an array that is of no subclass, and of the same memory.

    What an array of a subclass says of itself may be anything: nothing is read by it.

    Raises
    ------
    TypeError
        If it is no array, or has a mask.
    """
    if not cnp.PyArray_Check(x) or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a {type_text(x)}; expected {expected}")
    return base_of(x)


def as_features(x, dtype, tuple shape, bint contiguous=True, str name="x"):
    """`x` as a contiguous aligned array of `dtype` and `shape` (None: any), or an error that helps.

    Without `contiguous` only the numbers of the last axis must follow each other. The error calls
    it `name`.

    Raises
    ------
    TypeError
        If x is not a plain NumPy array, or of another dtype or byte order.
    ValueError
        If its shape is another.
    """
    if not cnp.PyArray_CheckExact(x):
        x = as_plain(name, x, f"a NumPy array of {dtype} and shape {shape_text(shape)}; "
                              f"pass np.asarray(x, dtype=np.{dtype})")
    if x.dtype != dtype or not x.dtype.isnative:
        given = x.dtype if x.dtype.isnative else f"{x.dtype.str} of another byte order"
        raise TypeError(
            f"{name} has dtype {given}; expected {dtype}, which the model computes in; "
            f"pass x.astype(np.{dtype})"
        )
    if not fits(x, shape):
        raise ValueError(f"{name} has shape {x.shape}; expected {shape_text(shape)}")
    if not contiguous and has_rows(x, x.ndim - 1):
        return x
    return np.require(x, requirements=["C", "A"])


def as_tokens(x, tuple shape, Py_ssize_t known, bint check=True, str name="x"):
    """`x` as a contiguous int64 array of `shape` (None: any) of tokens in [0, known).

    Without `check` the range is left to :func:`check_tokens`.

    Raises
    ------
    TypeError
        If x is neither an integer nor a plain NumPy array of integers.
    ValueError
        If its shape is another or a token is out of range.
    """
    if not isinstance(x, (np.ndarray, np.integer, int)) or isinstance(x, (bool, np.ma.MaskedArray)):
        raise TypeError(
            f"{name} is a {type_text(x)}; this model takes tokens: expected integers of shape "
            f"{shape_text(shape)}; pass np.asarray(x, dtype=np.int64)"
        )
    if isinstance(x, int) and not 0 <= x < known:
        raise ValueError(f"token {x} is out of range; the model knows tokens 0 to {known - 1}")
    array = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} has dtype {array.dtype}; this model takes tokens: expected integers of shape "
            f"{shape_text(shape)}; pass x.astype(np.int64)"
        )
    if not fits(array, shape):
        raise ValueError(f"{name} has shape {(<object>array).shape}; expected {shape_text(shape)}")
    if check:
        check_tokens(array, known)
    return np.require(array, np.int64, ["C", "A"])


def as_lengths(lengths, Py_ssize_t T, Py_ssize_t B):
    """`lengths` as a contiguous intp array (B,) of numbers from 0 to T.

    Raises
    ------
    TypeError
        If they are not integers.
    ValueError
        If their shape is another or one is out of range.
    """
    given = np.asarray(lengths)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"lengths is of dtype {given.dtype}; expected integers of shape ({B},)")
    if given.shape != (B,):
        raise ValueError(f"lengths has shape {given.shape}; expected ({B},)")
    if given.size and not 0 <= given.min() <= given.max() <= T:
        wrong = given[(given < 0) | (given > T)][0]
        raise ValueError(f"lengths holds {wrong}; expected 0 to {T}, the steps of x")
    return np.array(given, np.intp)  # a copy: the caller's may change while the kernel reads it


def as_mask(str name, mask, tuple shape):
    """A boolean array of this shape as a contiguous one of bytes that are 0 or 1.

    Raises
    ------
    TypeError
        If it is not a boolean array: numbers are not taken for a mask, nor for what it selects.
    ValueError
        If its shape is another.
    """
    mask = as_plain(name, mask, f"a boolean array of shape {shape_text(shape)}")
    if mask.dtype != np.bool_:
        raise TypeError(
            f"{name} has dtype {mask.dtype}; expected a boolean array of shape "
            f"{shape_text(shape)}: numbers could be a mask, or the rows that it selects")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {mask.shape}; expected {shape_text(shape)}")
    return np.not_equal(np.ascontiguousarray(mask).view(np.uint8), 0).view(np.uint8)


cdef bint has_rows(cnp.ndarray array, int leading):
    """Whether a row lies in one piece, behind so many axes that step by whole numbers.

    The stride of an axis of length one says nothing, nor do those of an empty array.
    """
    cdef cnp.npy_intp item = cnp.PyArray_ITEMSIZE(array), expected = item
    cdef int i
    if array.size == 0:
        return True
    if not cnp.PyArray_ISALIGNED(array):
        return False
    for i in range(leading):
        if array.strides[i] % item:
            return False
    for i in range(array.ndim - 1, leading - 1, -1):
        if array.shape[i] != 1 and array.strides[i] != expected:
            return False
        expected *= array.shape[i]
    return True


cdef tuple as_tuple(int ndim, cnp.npy_intp *shape):
    return tuple([shape[i] for i in range(ndim)])


cdef inline bint is_plain(x, int type_num, int ndim, cnp.npy_intp *shape):
    """Whether x can be read as it lies: the usual case, without a Python call."""
    return (cnp.PyArray_CheckExact(x) and cnp.PyArray_TYPE(<cnp.ndarray>x) == type_num
            and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>x) and (<cnp.ndarray>x).ndim == ndim
            and cnp.PyArray_CompareLists((<cnp.ndarray>x).shape, shape, ndim))


cdef inline bint is_block(x, int type_num, int row_ndim, cnp.npy_intp *row_shape):
    """Whether x is rows (T, ...) that can be read as they lie, again without a Python call."""
    return (cnp.PyArray_CheckExact(x) and cnp.PyArray_TYPE(<cnp.ndarray>x) == type_num
            and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>x)
            and (<cnp.ndarray>x).ndim == 1 + row_ndim
            and cnp.PyArray_CompareLists((<cnp.ndarray>x).shape + 1, row_shape, row_ndim))


cdef bint are_tokens(x, int ndim, cnp.npy_intp *shape, size_t known):
    """Whether x is tokens that can be read as they lie, each of them known."""
    cdef const int64_t *tokens
    cdef Py_ssize_t i
    if not is_plain(x, cnp.NPY_INT64, ndim, shape):
        return False
    tokens = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>x)
    for i in range((<cnp.ndarray>x).size):
        if not 0 <= tokens[i] < <int64_t>known:
            return False
    return True


cdef cnp.ndarray output_of(Ports ports, out, str name, int ndim, cnp.npy_intp *shape,
                           bint by_row=False):
    """`out` as an array to write in place of a new one, or an error that helps.

    With `by_row`, an output (T, N, ...) may also lie by row (N, T, ...), with room between rows.
    """
    cdef cnp.ndarray array
    if cnp.PyArray_CheckExact(out):
        array = <cnp.ndarray>out
    else:
        array = as_plain(name, out, "a NumPy array without a mask")
    if not is_of(array, ports.type_num):
        raise TypeError(f"{name} has dtype {array.dtype.str}; expected {ports.dtype}")
    if array.ndim != ndim or not cnp.PyArray_CompareLists(array.shape, shape, ndim):
        raise ValueError(
            f"{name} has shape {(<object>array).shape}; expected {as_tuple(ndim, shape)}")
    if not cnp.PyArray_ISCARRAY(array) and not (by_row and lies_by_row(array)):
        raise ValueError(
            f"{name} must be writeable, aligned and C-contiguous; make one with np.empty")
    return array


cdef inline int check_apart(str name, cnp.ndarray array, x) except -1:
    """Raise ValueError if an array to write shares memory with the input x."""
    if overlap(array, <cnp.ndarray>x):
        raise ValueError(f"{name} shares memory with x; give it memory of its own")
    return 0


cdef bint lies_by_row(cnp.ndarray y):
    """Whether an array (T, N, ...) is N rows of contiguous (T, ...), one behind the other."""
    cdef cnp.npy_intp row = cnp.PyArray_ITEMSIZE(y)
    cdef int i
    if y.ndim < 3 or not cnp.PyArray_ISWRITEABLE(y) or not has_rows(y, 2):
        return False
    for i in range(2, y.ndim):
        row *= y.shape[i]
    return ((y.shape[0] == 1 or y.strides[0] == row)
            and (y.shape[1] == 1 or y.strides[1] >= y.shape[0] * row))


cdef inline bint overlap(cnp.ndarray a, cnp.ndarray b):
    """Whether memory between the first and the last number of both is the same."""
    cdef char *a_first = <char *>cnp.PyArray_DATA(a)
    cdef char *b_first = <char *>cnp.PyArray_DATA(b)
    if cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_IS_C_CONTIGUOUS(b):
        return (a_first < b_first + cnp.PyArray_NBYTES(b)
                and b_first < a_first + cnp.PyArray_NBYTES(a))
    return np.may_share_memory(a, b)
