/* fastlstm_api.h - the engine's functions for extension modules of Python, from an installed fastlstm.
 *
 * All that fastlstm.h and host.h declare has its name here, and nothing is linked: fl_import()
 * fetches a table of functions and checks it. The folder of this file is fastlstm.get_include().
 * From Cython, `cimport fastlstm` has the same. Programs that are no modules of Python take the folder
 * that `fastlstm export` writes.
 *
 *   fl_import      once, as the module is imported, in each file of C that includes this
 *   fl_hold        a fastlstm.Model -> an object that keeps what it computes with
 *   fl_model_of    that object -> fl_model, of which fl_stream_new makes streams
 *
 * Those three are called with the GIL held; the others need none.
 */
#ifndef FASTLSTM_API_H
#define FASTLSTM_API_H

#include <Python.h>

#include "../core/fastlstm.h"
#include "../core/host.h"

/* The functions of the table, each once. New ones come last. */
#define FL_API_FUNCTIONS(F) \
    F(fl_abi) F(fl_error_text) F(fl_open_size) F(fl_open) F(fl_input_name) F(fl_output_name) \
    F(fl_part_name) F(fl_program_size) F(fl_program_init) F(fl_count) F(fl_input_shape) \
    F(fl_output_shape) F(fl_vocabulary) F(fl_model_size) F(fl_model_init) F(fl_model_isa) \
    F(fl_model_program) F(fl_isa) F(fl_stream_size) F(fl_stream_init) F(fl_step) F(fl_stream_run) \
    F(fl_stream_flush) F(fl_stream_count) F(fl_stream_reset) F(fl_stream_state_size) \
    F(fl_stream_get_state) F(fl_stream_set_state) F(fl_state_size) F(fl_state_part) \
    F(fl_state_read) F(fl_state_write) F(fl_scratch_size) F(fl_scratch_init) F(fl_begin) \
    F(fl_run) F(fl_flush) F(fl_count_rows) F(fl_team_new) F(fl_team_free) F(fl_load) \
    F(fl_load_bytes) F(fl_unload) F(fl_stream_new) F(fl_stream_free) F(fl_team_threads) \
    F(fl_stream_prepare) F(fl_prepared_size) F(fl_prepare) F(fl_drop)

#if defined(__cplusplus)
#define FL_MEMBER(name) decltype(::name) *name;
#else
#define FL_MEMBER(name) __typeof__(name) *name;
#endif

/* Its functions stay where they are as long as FL_ABI is the same. */
typedef struct {
    size_t struct_size;  /* sizeof(fl_api) where it was filled */
    int abi;             /* FL_ABI, likewise */
    PyObject *(*hold)(PyObject *model);
    const fl_model *(*model_of)(PyObject *held);
    FL_API_FUNCTIONS(FL_MEMBER)
} fl_api;

#undef FL_MEMBER

/* The engine itself fills the table, and calls its functions as they are. */
#if !defined(FL_ENGINE)

static const fl_api *fl_table;

/* Fetch the table of the installed fastlstm. Not 0, with ImportError set, if there is none, or one
 * that this module was not compiled for. */
static inline int fl_import(void) {
    const fl_api *found = (const fl_api *)PyCapsule_Import("fastlstm._engine._C_API", 0);
    if (!found) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_SetString(PyExc_ImportError,
                            "the fastlstm that is installed has no functions for C; expected one "
                            "at least as new as that which this module was compiled with: "
                            "install it, or compile this module again");
        return -1;
    }
    if (found->abi != FL_ABI) {
        PyErr_Format(PyExc_ImportError,
                     "the fastlstm that is installed has version %d of its functions for C; this "
                     "module was compiled for version %d: compile it again",
                     found->abi, FL_ABI);
        return -1;
    }
    if (found->struct_size < sizeof(fl_api)) {
        PyErr_Format(PyExc_ImportError,
                     "the fastlstm that is installed has %zu bytes of functions for C; this module "
                     "was compiled with a newer one, which has %zu: install that, or compile this "
                     "module again",
                     found->struct_size, sizeof(fl_api));
        return -1;
    }
    fl_table = found;
    return 0;
}

static inline int fl_is_imported(void) {
    if (!fl_table)
        PyErr_SetString(PyExc_RuntimeError,
                        "fl_import() was not called; expected it once, as the module is imported, "
                        "in each file of C that includes fastlstm_api.h");
    return fl_table != NULL;
}

/* An object that keeps what a fastlstm.Model computes with now: the weights, packed, stay where they
 * are as long as it lives, whatever becomes of the model. NULL with TypeError set: it is no Model.
 *
 * `fastlstm.load(path, into=model)` gives the model other weights, and changes nothing for what was
 * held before: streams in C go on with the old ones. Who holds the model anew has the new ones, for
 * streams that are made of them. */
static inline PyObject *fl_hold(PyObject *model) {
    return fl_is_imported() ? fl_table->hold(model) : NULL;
}

/* The model that fl_hold's object keeps. NULL with TypeError set: it is another object. */
static inline const fl_model *fl_model_of(PyObject *held) {
    return fl_is_imported() ? fl_table->model_of(held) : NULL;
}

#define fl_abi (fl_table->fl_abi)
#define fl_error_text (fl_table->fl_error_text)
#define fl_open_size (fl_table->fl_open_size)
#define fl_open (fl_table->fl_open)
#define fl_input_name (fl_table->fl_input_name)
#define fl_output_name (fl_table->fl_output_name)
#define fl_part_name (fl_table->fl_part_name)
#define fl_program_size (fl_table->fl_program_size)
#define fl_program_init (fl_table->fl_program_init)
#define fl_count (fl_table->fl_count)
#define fl_input_shape (fl_table->fl_input_shape)
#define fl_output_shape (fl_table->fl_output_shape)
#define fl_vocabulary (fl_table->fl_vocabulary)
#define fl_model_size (fl_table->fl_model_size)
#define fl_model_init (fl_table->fl_model_init)
#define fl_model_isa (fl_table->fl_model_isa)
#define fl_model_program (fl_table->fl_model_program)
#define fl_isa (fl_table->fl_isa)
#define fl_stream_size (fl_table->fl_stream_size)
#define fl_stream_init (fl_table->fl_stream_init)
#define fl_step (fl_table->fl_step)
#define fl_stream_run (fl_table->fl_stream_run)
#define fl_stream_flush (fl_table->fl_stream_flush)
#define fl_stream_count (fl_table->fl_stream_count)
#define fl_stream_reset (fl_table->fl_stream_reset)
#define fl_stream_state_size (fl_table->fl_stream_state_size)
#define fl_stream_get_state (fl_table->fl_stream_get_state)
#define fl_stream_set_state (fl_table->fl_stream_set_state)
#define fl_state_size (fl_table->fl_state_size)
#define fl_state_part (fl_table->fl_state_part)
#define fl_state_read (fl_table->fl_state_read)
#define fl_state_write (fl_table->fl_state_write)
#define fl_scratch_size (fl_table->fl_scratch_size)
#define fl_scratch_init (fl_table->fl_scratch_init)
#define fl_begin (fl_table->fl_begin)
#define fl_run (fl_table->fl_run)
#define fl_flush (fl_table->fl_flush)
#define fl_count_rows (fl_table->fl_count_rows)
#define fl_team_new (fl_table->fl_team_new)
#define fl_team_free (fl_table->fl_team_free)
#define fl_load (fl_table->fl_load)
#define fl_load_bytes (fl_table->fl_load_bytes)
#define fl_unload (fl_table->fl_unload)
#define fl_stream_new (fl_table->fl_stream_new)
#define fl_stream_free (fl_table->fl_stream_free)
#define fl_team_threads (fl_table->fl_team_threads)
#define fl_stream_prepare (fl_table->fl_stream_prepare)
#define fl_prepared_size (fl_table->fl_prepared_size)
#define fl_prepare (fl_table->fl_prepare)
#define fl_drop (fl_table->fl_drop)

#endif
#endif
