# What a caller gives, checked: counts and durations.

from cpython.number cimport PyNumber_Index


def as_count(str name, value, least=0, most=None):
    """`value` as an int from `least` to `most` (None: any), or an error that helps.

    Parameters
    ----------
    name : str
        What the caller calls it.
    value : int, or anything that is one exactly, as NumPy's integers are
        Not a bool: True is no count.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is out of range.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = PyNumber_Index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r:.80}; expected an integer") from None
    if number < least or most is not None and number > most:
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {number}; expected {expected}")
    return number


def as_duration(str name, value, str unit, most=None):
    """`value` as a float from 0 to `most` (None: any), or an error that helps.

    Parameters
    ----------
    name : str
        What the caller calls it.
    value : a real number, Python's or NumPy's
        Not a bool.
    unit : str
        What it counts, for the error.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is negative, NaN or too large.
    """
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        number = float(value)
    except OverflowError:
        number = float("inf") if value > 0 else float("-inf")
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r:.80}; expected a number of {unit}") from None
    if not 0 <= number <= (float("inf") if most is None else most):
        expected = "0 or more" if most is None else f"0 to {most}"
        raise ValueError(f"{name} is {value!r:.40}; expected {unit}, {expected}")
    return number
