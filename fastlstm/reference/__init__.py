"""The specification in code: every layer's equations in NumPy, in any float dtype.

Rows are arrays (T, B, *shape): time first, then the batch. :func:`forward` runs a whole sequence by
formulas that see all of it, :class:`Stream` any pieces of one, with a state. The two give the same
numbers, which tests hold the other against.
"""

from fastlstm.reference.stream import Stream, forward

__all__ = ["Stream", "forward"]
