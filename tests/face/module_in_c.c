/* module_in_c.c - an extension module as others write it by hand, in C or C++: tests of
 * fastlstm_api.h call its functions one by one.
 */
#define PY_SSIZE_T_CLEAN
#include <fastlstm_api.h>

static PyObject *do_import(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    if (fl_import()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *do_hold(PyObject *self, PyObject *model) {
    (void)self;
    return fl_hold(model);
}

static PyObject *isa_of(PyObject *self, PyObject *held) {
    (void)self;
    const fl_model *model = fl_model_of(held);
    return model ? PyUnicode_FromString(fl_model_isa(model)) : NULL;
}

/* Steps [first, end) of float32 rows on a new stream, which goes on from `state` (bytes,) if it is
 * told so; the state after them is written there. */
static fl_error run_part(const fl_model *model, const fl_stream_config *config, fl_rows in,
                         fl_rows out, size_t first, size_t end, int goes_on, void *state,
                         size_t bytes) {
    fl_stream *stream;
    fl_error error = fl_stream_new(model, config, &stream);
    if (error) return error;
    if (fl_stream_state_size(stream) > bytes) error = FL_LITTLE_MEMORY;
    bytes = fl_stream_state_size(stream);
    if (!error && goes_on) error = fl_stream_set_state(stream, state, bytes);
    in.data = (float *)in.data + (ptrdiff_t)first * in.t;
    out.data = (float *)out.data + (ptrdiff_t)first * out.t;
    if (!error) error = fl_stream_run(stream, end - first, &in, &out, NULL);
    if (!error) error = fl_stream_get_state(stream, state, bytes);
    fl_stream_free(stream);
    return error;
}

/* run(held, then, x, y, threads): float32 x, its first half on a stream of one model, the rest, from
 * the state of that, on a stream of another. */
static PyObject *run(PyObject *self, PyObject *given) {
    PyObject *held, *then;
    Py_buffer x, y;
    Py_ssize_t threads;
    (void)self;
    if (!PyArg_ParseTuple(given, "OOy*w*n", &held, &then, &x, &y, &threads)) return NULL;
    const fl_model *models[2] = {fl_model_of(held), NULL};
    if (models[0]) models[1] = fl_model_of(then);
    fl_team *team = threads > 1 ? fl_team_new((size_t)threads) : NULL;
    const fl_threads shared = fl_team_threads(team, (size_t)threads);
    fl_error error = threads > 1 && !team ? FL_NO_MEMORY : FL_OK;
    if (models[1] && !error) {
        static char state[1 << 16];
        const fl_program *program = fl_model_program(models[0]);
        const fl_rows in = {x.buf, (ptrdiff_t)fl_input_shape(program, 0).count, 0};
        const fl_rows out = {y.buf, (ptrdiff_t)fl_output_shape(program, 0).count, 0};
        const size_t T = (size_t)x.len / sizeof(float) / (size_t)in.t, half = T / 2;
        fl_stream_config config;
        memset(&config, 0, sizeof config);
        config.struct_size = sizeof config;
        config.T = 8;
        config.B = 1;
        config.threads = team ? &shared : NULL;
        Py_BEGIN_ALLOW_THREADS
        error = run_part(models[0], &config, in, out, 0, half, 0, state, sizeof state);
        if (!error) error = run_part(models[1], &config, in, out, half, T, 1, state, sizeof state);
        Py_END_ALLOW_THREADS
    }
    fl_team_free(team);
    PyBuffer_Release(&x);
    PyBuffer_Release(&y);
    if (!models[1]) return NULL;
    if (!error) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, fl_error_text(error));
    return NULL;
}

static PyMethodDef functions[] = {
    {"do_import", do_import, METH_NOARGS, NULL},
    {"do_hold", do_hold, METH_O, NULL},
    {"isa_of", isa_of, METH_O, NULL},
    {"run", run, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "module_in_c", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_module_in_c(void);

PyMODINIT_FUNC PyInit_module_in_c(void) { return PyModule_Create(&definition); }
