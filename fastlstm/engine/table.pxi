# The table of functions that extension modules of others call, by way of include/fastlstm_api.h.

from cpython.pycapsule cimport PyCapsule_New

from fastlstm cimport fl_model


cdef extern from *:
    """
    #define FL_ENTRY(name) .name = name,
    static fl_api fl_made = {
        .struct_size = sizeof(fl_api), .abi = FL_ABI, FL_API_FUNCTIONS(FL_ENTRY)
    };
    """
    ctypedef struct fl_api:
        object (*hold)(object model)
        const fl_model *(*model_of)(object held) except NULL
    fl_api fl_made


cdef object hold(model):
    """What a fastlstm.Model computes with now: a Packed, which stays as it is."""
    network = getattr(model, "_network", None)
    if not isinstance(network, Network):
        raise TypeError(
            f"fl_hold was given a {type(model).__qualname__}; expected a fastlstm.Model, which the "
            f"`model` of a Stream, a Pool or a module of torch's names is"
        )
    return (<Network>network).packed


cdef const fl_model *model_of(held) except NULL:
    if type(held) is not Packed:
        raise TypeError(
            f"fl_model_of was given a {type(held).__qualname__}; expected what fl_hold() returned"
        )
    return (<Packed>held).model


fl_made.hold, fl_made.model_of = hold, model_of
_C_API = PyCapsule_New(&fl_made, "fastlstm._engine._C_API", NULL)
