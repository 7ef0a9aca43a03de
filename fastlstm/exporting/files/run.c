/* run.c - rows from standard input through the model to standard output.
 *
 *   ./run < input.f32 > output.f32        with the model that was exported
 *   ./run model.flm < input.f32 > ...     with the model of another file
 *
 * A row of an input is float32 numbers, or one int64 for each token, as they lie in memory. A model
 * with several inputs reads a row of each, step after step, and before the first step the rows of
 * held inputs. Of several outputs each step's rows follow one another, output by output. What is
 * still due at the end comes last.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif

#include "fastlstm_host.h"
#include "model.h"

enum { BLOCK = 64 }; /* steps of a call, of a model with one input and one output */

static int fail(const char *what, const char *message) {
    fprintf(stderr, "run: %s: %s\n", what, message);
    return 1;
}

/* Rows of all inputs, or of all outputs. */
typedef struct {
    size_t count;
    fl_rows *rows;  /* (count,) */
    size_t *bytes;  /* (count,) of one row */
    size_t *room;   /* (count,) rows that there is memory for */
} values;

static int make_values(values *made, const fl_program *program, int outputs) {
    made->count = fl_count(program, outputs ? FL_COUNT_OUTPUTS : FL_COUNT_INPUTS);
    made->rows = calloc(made->count + 1, sizeof *made->rows);
    made->bytes = calloc(made->count + 1, sizeof *made->bytes);
    made->room = calloc(made->count + 1, sizeof *made->room);
    if (!made->rows || !made->bytes || !made->room) return 0;
    for (size_t i = 0; i < made->count; ++i) {
        const fl_row_shape shape =
            outputs ? fl_output_shape(program, i) : fl_input_shape(program, i);
        made->bytes[i] = shape.count * (shape.tokens ? sizeof(int64_t) : sizeof(float));
        made->rows[i].t = (ptrdiff_t)shape.count;
    }
    return 1;
}

/* Memory for so many rows of value i. */
static int make_room(values *of, size_t i, size_t rows) {
    if (of->rows[i].data && rows <= of->room[i]) return 1;
    if (of->bytes[i] && rows > (SIZE_MAX - 1) / of->bytes[i]) return 0;
    void *data = realloc(of->rows[i].data, rows * of->bytes[i] + 1);
    if (!data) return 0;
    of->rows[i].data = data;
    of->room[i] = rows;
    return 1;
}

/* Read a row of each input that is held, or of each that is not: 1, 0 at the end or where there is
 * no such input, -1 within one. */
static int read_row(const values *x, const fl_program *program, int held) {
    int begun = 0;
    for (size_t i = 0; i < x->count; ++i) {
        if (fl_input_shape(program, i).held != held) continue;
        const size_t got = fread(x->rows[i].data, 1, x->bytes[i], stdin);
        if (got < x->bytes[i]) return got || begun ? -1 : 0;
        begun = 1;
    }
    return begun;
}

static fl_error run_steps(fl_stream *stream, size_t T, int ending, const values *x, values *y,
                          size_t *rows) {
    fl_error error = fl_stream_count(stream, T, ending, rows);
    for (size_t o = 0; o < y->count && !error; ++o)
        if (!make_room(y, o, rows[o])) error = FL_NO_MEMORY;
    if (!error)
        error = ending ? fl_stream_flush(stream, y->rows, rows)
                       : fl_stream_run(stream, T, x->rows, y->rows, rows);
    for (size_t o = 0; o < y->count && !error; ++o)
        if (fwrite(y->rows[o].data, y->bytes[o], rows[o], stdout) < rows[o]) error = FL_NO_FILE;
    return error;
}

static int run(const fl_model *model) {
    const fl_program *program = fl_model_program(model);
    fl_stream_config config = {.struct_size = sizeof config, .B = 1};
    fl_stream *stream;
    values x, y;
    int got = 1, holds = 0;
    if (fl_count(program, FL_COUNT_AHEAD))
        return fail("the model", "it looks ahead: it takes whole sequences, and cannot be streamed");
    config.T = fl_count(program, FL_COUNT_INPUTS) == 1 ? BLOCK : 1;
    if (fl_count(program, FL_COUNT_OUTPUTS) != 1) config.T = 1;
    fl_error error = fl_stream_new(model, &config, &stream);
    if (error) return fail("the stream", fl_error_text(error));
    int made = make_values(&x, program, 0) && make_values(&y, program, 1);
    for (size_t i = 0; made && i < x.count; ++i) made = make_room(&x, i, config.T);
    size_t *rows = calloc(made ? y.count + 1 : 1, sizeof *rows);
    if (!made || !rows) return fail("the rows", fl_error_text(FL_NO_MEMORY));
    for (size_t i = 0; i < x.count; ++i) holds |= fl_input_shape(program, i).held;
    if (holds && read_row(&x, program, 1) <= 0)
        return fail("standard input", "it ends before or within the rows of held inputs");
    error = fl_stream_reset(stream, x.rows);
    while (!error && got > 0) {
        if (config.T > 1) {
            const size_t bytes = fread(x.rows[0].data, 1, config.T * x.bytes[0], stdin);
            got = bytes % x.bytes[0] ? -1 : (int)(bytes / x.bytes[0]);
        } else {
            got = read_row(&x, program, 0);
        }
        if (got > 0) error = run_steps(stream, (size_t)got, 0, &x, &y, rows);
    }
    if (got < 0) return fail("standard input", "it ends within a row");
    if (!error) error = run_steps(stream, 0, 1, &x, &y, rows);
    if (!error && fflush(stdout)) error = FL_NO_FILE;
    if (error)
        return fail("the rows", error == FL_NO_FILE ? "they cannot be written" : fl_error_text(error));
    fl_stream_free(stream);
    return 0;
}

int main(int count, char **words) {
    const fl_model_config config = {.struct_size = sizeof config, .type = FL_FLOAT32};
    char message[256] = "";
    fl_loaded loaded;
    fl_error error;
#if defined(_WIN32)
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    if (count > 2) return fail("usage", "run [MODEL] < input > output");
    if (count == 2) {
        error = fl_load(words[1], &config, &loaded, message, sizeof message);
    } else {
#if defined(MODEL_APART)
        return fail("usage", "run " MODEL_APART " < input > output");
#else
        error = fl_load_bytes(MODEL, MODEL_BYTES, &config, &loaded, message, sizeof message);
#endif
    }
    if (error) return fail(count == 2 ? words[1] : "the model", *message ? message : fl_error_text(error));
    const int failed = run(loaded.model);
    fl_unload(&loaded);
    return failed;
}
