# cython: language_level=3
"""Watch what a recurrent network says, step by step, in C and without the GIL."""

from libc.math cimport INFINITY

from fastlstm cimport (
    FL_BAD_ARGUMENT, FL_OK, fl_error, fl_error_text, fl_hold, fl_import, fl_input_shape, fl_model,
    fl_model_of, fl_model_program, fl_output_shape, fl_step, fl_stream, fl_stream_config,
    fl_stream_free, fl_stream_new, fl_stream_reset,
)

fl_import()  # an ImportError here says what does not fit


cdef int check(fl_error error) except -1:
    if error != FL_OK:
        raise ValueError(fl_error_text(error).decode())
    return 0


cdef class Watch:
    """A stream of a model that stops where its output passes a limit.

    It belongs to one thread at a time; the model can be shared.

    Parameters
    ----------
    model : fastlstm.Model
        Of float32, with one input and one output that has a row for each step.
    """

    cdef object held          # keeps the weights where they are as long as the stream needs them
    cdef fl_stream *stream
    cdef readonly size_t inputs, outputs

    def __cinit__(self, model):
        cdef const fl_model *packed
        cdef fl_stream_config config
        self.held = fl_hold(model)
        packed = fl_model_of(self.held)
        if model.dtype != "float32" or model.takes_tokens:
            raise ValueError(f"{model!r}; expected a model that reads float32 numbers")
        config.struct_size, config.T, config.B = sizeof(config), 1, 1
        config.whole, config.threads = False, NULL
        check(fl_stream_new(packed, &config, &self.stream))
        self.inputs = fl_input_shape(fl_model_program(packed), 0).count
        self.outputs = fl_output_shape(fl_model_program(packed), 0).count

    def __dealloc__(self):
        fl_stream_free(self.stream)

    def run(self, const float[:, ::1] x, float[:, ::1] y, float limit=INFINITY):
        """Step until the first number of an output is above the limit.

        Parameters
        ----------
        x : float32 array (T, inputs)
        y : float32 array (T, outputs)
            Written, as far as steps are made.
        limit : float, optional

        Returns
        -------
        int
            Steps made: T, unless the last of them is the one that passed the limit.
        """
        cdef size_t t = 0, T = x.shape[0]
        cdef fl_error error = FL_OK
        if (<size_t>x.shape[1] != self.inputs or <size_t>y.shape[1] != self.outputs
                or <size_t>y.shape[0] != T):
            raise ValueError(
                f"x is ({x.shape[0]}, {x.shape[1]}) and y ({y.shape[0]}, {y.shape[1]}); expected "
                f"(T, {self.inputs}) and (T, {self.outputs})"
            )
        with nogil:
            while t < T:
                error = fl_step(self.stream, &x[t, 0], &y[t, 0])
                if error != FL_OK:
                    break
                t += 1
                # Here a program does what cannot wait: it sends an order, or stops a motor.
                if y[t - 1, 0] > limit:
                    break
        if error == FL_BAD_ARGUMENT:
            raise ValueError(
                "the model has no row of one output for each step of one input; expected one that "
                "fl_step takes, or fl_stream_run in its place"
            )
        check(error)
        return t

    def reset(self):
        """Start the next sequence."""
        check(fl_stream_reset(self.stream, NULL))
