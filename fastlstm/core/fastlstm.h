/* fastlstm.h - the engine's whole public face in C: models, streams, and what they are made from.
 *
 * Nothing here allocates, locks, prints or makes a system call: what is made lies in memory of the
 * caller's, whose size is told first, and which must begin at a multiple of FL_ALIGNMENT bytes.
 * Files, programs, states and arguments are checked as untrusted; an error is a number,
 * fl_error_text() says what it means, and where a function takes a `message` it is given what was
 * wrong exactly. A call that returns an error has written nothing else, unless its comment says so,
 * but NULL or 0 where it would have put what it makes. What is asked of NULL is NULL or 0.
 *
 *   fl_open_size, fl_open                bytes that `fastlstm export` wrote -> fl_program, checked
 *   fl_model_size, fl_model_init         fl_program -> fl_model, packed for an instruction set
 *   fl_stream_size, fl_stream_init       fl_model -> fl_stream, where a sequence starts
 *   fl_step, fl_stream_run               steps -> rows
 *   fl_stream_prepare                    what of a step does not need its input
 *   fl_stream_flush, fl_stream_reset     the rows still due at its end; the next sequence
 *
 * A model is only read once it is made: any number of streams and threads may share it. A stream is
 * used by one thread at a time. Memory is given back by the caller: streams first, then models, then
 * programs; nothing has to be told of it. Calls set flush-to-zero for denormal numbers while they
 * run, and restore the caller's mode; where it is set already they write nothing.
 *
 * Who runs many streams in one call, or cuts memory otherwise, uses what a stream is made of:
 *   fl_state_size, fl_scratch_size, fl_scratch_init, fl_begin, fl_run, fl_flush, fl_prepare
 *
 * Dimension letters in the shape comments: T steps, B rows of a batch (independent sequences).
 * `real` is float or double, as the model was made. Strides count elements.
 */
#ifndef FASTLSTM_H
#define FASTLSTM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counted up when a struct or a function below changes so that a caller must be compiled anew. A
 * struct that begins with struct_size may get more fields at its end without that; one of a size
 * that the library does not know is FL_BAD_ARGUMENT. */
#define FL_ABI 1
int fl_abi(void); /* FL_ABI of the library that was linked */

enum { FL_ALIGNMENT = 64 };

typedef enum {
    FL_OK,
    FL_BAD_ARGUMENT,  /* an argument, or a field of a call, is not as it must be */
    FL_BAD_PROGRAM,   /* the file or program is none, is damaged, or computes what cannot be */
    FL_BAD_TENSORS,   /* the tensors are not those that the program was made for */
    FL_BAD_STATE,     /* numbers that no state can have, or a state of another model */
    FL_TOO_LARGE,     /* more memory than can be addressed, or a bound of the program's is passed */
    FL_LITTLE_MEMORY, /* less memory was given than was asked for, or it is not aligned */
    FL_NO_KERNEL,     /* this processor, or this build, has no such instruction set */
    FL_STOPPED,       /* the call's `stop` said so */
    FL_NO_FILE,       /* it cannot be read: only of what reads files */
    FL_NO_MEMORY      /* there is none: only of what allocates */
} fl_error;

/* What an error means, in English, without a full stop; never NULL. */
const char *fl_error_text(fl_error error);

/* Models compute in one of the first two; tensors may be of any. A bfloat16 is the upper half of a
 * float's bits; an int8 is from -127 to 127, and has its scales in the program. */
typedef enum { FL_FLOAT32, FL_FLOAT64, FL_FLOAT16, FL_BFLOAT16, FL_INT8 } fl_type;

/* ---- Programs: what to compute ---- */

typedef struct fl_program fl_program;

/* Bytes of memory that fl_open takes for `file` (bytes,), which `fastlstm export` wrote and which
 * lies at a multiple of 8 bytes. message (message_bytes,), or NULL: what is wrong. */
fl_error fl_open_size(const void *file, size_t bytes, size_t *memory_bytes, char *message,
                      size_t message_bytes);

/* Open a file in `memory`, which from then on is the program's. The file must stay as it is until
 * models are made of the program, and as long as a model that keeps its tensors. `memory` may have
 * been written to where there is an error. */
fl_error fl_open(const void *file, size_t bytes, void *memory, size_t memory_bytes,
                 const fl_program **opened, char *message, size_t message_bytes);

/* The names of inputs, outputs and parts of the state, as UTF-8; NULL where there is no such number,
 * or where the program was not opened from a file. */
const char *fl_input_name(const fl_program *program, size_t number);
const char *fl_output_name(const fl_program *program, size_t number);
const char *fl_part_name(const fl_program *program, size_t number);

/* As fl_open_size and fl_open, of a program alone, whose tensors lie elsewhere. */

/* Bytes that the decoded program takes. `program` needs no alignment; all sizes in it are checked
 * against `bytes`, and nothing else is as yet. */
fl_error fl_program_size(const void *program, size_t bytes, size_t *memory_bytes);

/* Decode and check a program into `memory`, which from then on is the program's; `program` is not
 * needed any more. message (message_bytes,), or NULL: what is wrong, and with which operation.
 * `memory` may have been written to where there is an error. */
fl_error fl_program_init(const void *program, size_t bytes, void *memory, size_t memory_bytes,
                         const fl_program **made, char *message, size_t message_bytes);

/* What there is of: */
typedef enum {
    FL_COUNT_INPUTS,  /* per step or held */
    FL_COUNT_OUTPUTS,
    FL_COUNT_PARTS,   /* of a state */
    FL_COUNT_TENSORS,
    FL_COUNT_STATE,   /* numbers in a state */
    FL_COUNT_AHEAD    /* 1: sequences run only whole, as rows depend on later ones */
} fl_count_of;
size_t fl_count(const fl_program *program, fl_count_of what);

typedef struct {
    size_t count;   /* numbers of a row */
    size_t tokens;  /* not 0: a row is int64 tokens, each at least 0 and less than this */
    int held;       /* one row for a whole sequence, read by fl_begin */
} fl_row_shape;

/* Of input `number`, or output; of one that is not there, all 0. */
fl_row_shape fl_input_shape(const fl_program *program, size_t number);
fl_row_shape fl_output_shape(const fl_program *program, size_t number);

/* Names and fields of all that a program can say, a line each, as plan/operations.py has them.
 * Returns the characters of all of it; text (bytes,) is given what there is room for and a 0 behind
 * it, unless bytes is 0. */
size_t fl_vocabulary(char *text, size_t bytes);

/* ---- Models: a program packed with its tensors ---- */

typedef struct fl_model fl_model;

/* The numbers of one tensor, one behind the other, aligned as their type needs. */
typedef struct {
    const void *data;    /* (count,) */
    size_t count;
    fl_type type;
} fl_tensor_data;

typedef struct {
    size_t struct_size;  /* sizeof(fl_model_config) */
    fl_type type;        /* of all that is computed */
    const char *isa;     /* the name of an instruction set, or NULL: the best there is */
    int keeps_tensors;   /* not 0: tensors of floats or doubles are of `type`, and all stay where and */
                         /* as they are for as long as the model: one read as it lies is not copied */
} fl_model_config;

fl_error fl_model_size(const fl_program *program, const fl_model_config *config, size_t *bytes,
                       char *message, size_t message_bytes);

/* tensors (tensor_count,), or NULL and 0: those of the file that the program was opened from. They
 * are not needed any more afterwards, nor are their numbers unless the config says that they stay;
 * `program` is, as long as the model. `memory` may have been written to where there is an error. */
fl_error fl_model_init(const fl_program *program, const fl_model_config *config,
                       const fl_tensor_data *tensors, size_t tensor_count, void *memory,
                       size_t memory_bytes, const fl_model **made, char *message,
                       size_t message_bytes);

const char *fl_model_isa(const fl_model *model);
const fl_program *fl_model_program(const fl_model *model);

/* Name of instruction set `number` for reals of `type` that this processor can run, best first, or
 * NULL behind the last. */
const char *fl_isa(fl_type type, size_t number);

/* ---- Streams: sequences that go on from call to call ---- */

/* Row t of stream b of an input or output begins at element t * t + b * b of data; its numbers
 * follow one another. */
typedef struct {
    void *data;      /* real, or int64_t of tokens; an input is only read */
    ptrdiff_t t, b;  /* strides; of a held value t does not count */
} fl_rows;

/* Threads of the caller's that share the work of a call; all get `team` as they are called. */
typedef struct {
    void *team;  /* whatever they are, which only the functions know */
    /* How many of `wanted` ranks may be used now; 1: the caller alone. */
    size_t (*take)(void *team, size_t wanted, int is_long);
    /* Run work(job, rank, ranks) on each rank at once; rank 0 is the caller. */
    void (*run)(void *team, size_t ranks, void (*work)(void *job, size_t rank, size_t ranks),
                void *job);
    /* Wait for all ranks that have not left. */
    void (*barrier)(void *team, size_t rank, size_t ranks);
    void (*leave)(void *team, size_t rank);
    size_t size;     /* ranks at most */
} fl_threads;

typedef struct fl_stream fl_stream;

typedef struct {
    size_t struct_size;         /* sizeof(fl_stream_config) */
    size_t T;                   /* at least 1: longer blocks are cut into pieces of so many steps */
    size_t B;                   /* at least 1: sequences that step together */
    int whole;                  /* not 0: what is folded over time has one row for all of a sequence, */
                                /* and that from fl_stream_flush; 0: one for each step */
    const fl_threads *threads;  /* NULL: the caller alone. Else they stay as long as the stream */
    int prepares;               /* not 0: there is memory for fl_stream_prepare */
} fl_stream_config;

fl_error fl_stream_size(const fl_model *model, const fl_stream_config *config, size_t *bytes);

/* Put a stream where a sequence starts. One whose model has held inputs is told them by
 * fl_stream_reset, and until then refuses to run. A stream stays where it was made. */
fl_error fl_stream_init(const fl_model *model, const fl_stream_config *config, void *memory,
                        size_t memory_bytes, fl_stream **made);

/* One step of a model with one input, and one output with a row for each step:
 * x real or int64_t (B, input), y real (B, output). FL_BAD_ARGUMENT of another model, or where a
 * token is none. */
fl_error fl_step(fl_stream *stream, const void *x, void *y);

/* Make what of the next step does not need its input, where it is not made yet: the products of h of
 * all recurrences, which the step then reads in place of their weights. It has the same bits either
 * way. Whatever changes the state drops it. FL_BAD_ARGUMENT of a stream whose config does not say
 * `prepares`. */
fl_error fl_stream_prepare(fl_stream *stream);

/* T steps, of any number. inputs (inputs,), of which held ones are not read; outputs (outputs,),
 * which must have room for the rows, and overlap no input; `rows` (outputs,), or NULL, is how many
 * rows each batch row was given. All tokens are looked at first. A model that looks ahead (FL_COUNT_AHEAD) takes whole sequences, of
 * no more steps than the config says, else FL_TOO_LARGE. */
fl_error fl_stream_run(fl_stream *stream, size_t T, const fl_rows *inputs, const fl_rows *outputs,
                       size_t *rows);

/* The rows that are due at the end of the sequences. The stream stays as it is. */
fl_error fl_stream_flush(fl_stream *stream, const fl_rows *outputs, size_t *rows);

/* How many rows fl_stream_run would give of T steps, no more than the config's, or where `ending` is
 * not 0 fl_stream_flush, with T = 0. */
fl_error fl_stream_count(fl_stream *stream, size_t T, int ending, size_t *rows);

/* Start the next sequence. inputs (inputs,) of which only held ones are read, one row for each of
 * the B; NULL where the model has none. */
fl_error fl_stream_reset(fl_stream *stream, const fl_rows *inputs);

/* The state as bytes, which another stream of the same model and B takes, on any machine and any
 * instruction set: fl_stream_state_size() of them. Bytes that are damaged, or of another model, are
 * FL_BAD_STATE. What held inputs said is not part of them: a stream is told that first. */
size_t fl_stream_state_size(const fl_stream *stream);
fl_error fl_stream_get_state(const fl_stream *stream, void *to, size_t bytes);
fl_error fl_stream_set_state(fl_stream *stream, const void *from, size_t bytes);

/* ---- States and calls: what streams are made of ---- */

/* Bytes of one stream's state. */
size_t fl_state_size(const fl_model *model);

typedef struct {
    size_t rows, count;  /* its shape; of a count both are 1, and it is an int64 */
    int is_count;
} fl_part_shape;

fl_part_shape fl_state_part(const fl_program *program, size_t part);

/* Numbers of a part of a state as they are known by name: real (rows, count), the oldest row of a
 * ring first; or one int64. */
fl_error fl_state_read(const fl_model *model, const void *state, size_t part, void *to,
                       size_t to_bytes);
fl_error fl_state_write(const fl_model *model, void *state, size_t part, const void *from,
                        size_t from_bytes);

/* y (rows, outputs) += x (rows, inputs) w (inputs, outputs), all row-major; rows of x and y lie
 * `x_stride` and `y_stride` apart, those of w follow each other. A BLAS behind one signature. */
typedef void (*fl_gemm)(size_t rows, size_t outputs, size_t inputs, const void *x, size_t x_stride,
                        const void *w, void *y, size_t y_stride);

/* Memory that calls work in, one at a time, and how they are cut into pieces for it. */
typedef struct fl_scratch fl_scratch;

/* For calls of up to T steps of exactly B streams on up to `threads` threads. */
fl_error fl_scratch_size(const fl_model *model, size_t T, size_t B, size_t threads,
                         size_t *bytes);
fl_error fl_scratch_init(const fl_model *model, size_t T, size_t B, size_t threads, void *memory,
                         size_t memory_bytes, fl_scratch **made);

typedef struct {
    size_t struct_size;         /* sizeof(fl_call) */
    size_t T, B;
    const fl_rows *inputs;      /* (inputs,); held ones are read where a sequence starts only: by */
                                /* fl_begin, and by a call with resets */
    const fl_rows *outputs;     /* (outputs,); they overlap no input, state or scratch */
    void *const *states;        /* (B,), each fl_state_size bytes, all distinct */
    const size_t *lengths;      /* (B,) steps of each stream, none of more than T; NULL: all T */
    int whole;                  /* what is folded has one row for all of a sequence, and that */
                                /* from fl_flush */
    fl_scratch *scratch;        /* of this model, for T or more steps of B streams */
    const fl_threads *threads;  /* NULL: the caller alone */
    fl_gemm gemm;               /* NULL: the kernel's own loops, whose bits depend on nothing */
    int (*stop)(void *who);     /* asked now and then, by the caller; not 0: stop. Or NULL */
    void *who;                  /* what `stop` is given */
    size_t turn;                /* written: 0 at first, and then left as it is */
    size_t steps_done;          /* written: T, or the steps that the states have taken */
    size_t *rows;               /* written, (outputs, B): rows that the call gave. Or NULL */
    void *const *prepared;      /* (B,) what fl_prepare makes for each of the states, or NULL for it: */
                                /* then made by the step. Or NULL */
    const unsigned char *resets; /* (T, B) not 0: before this step the stream starts anew, as by */
                                /* fl_begin, with the rows that held inputs have. Or NULL */
} fl_call;

/* Put `states` where a sequence starts, with the rows that held inputs have. T is 0, and outputs are
 * not read. */
fl_error fl_begin(const fl_model *model, fl_call *call);

/* T steps. A call that is stopped leaves the states as they were after its first `steps_done`
 * steps; what the outputs hold beyond their rows is undefined. Of a program that looks ahead the T
 * steps are a whole sequence, its end among them, and `resets` is FL_BAD_ARGUMENT. Of others a reset
 * drops the rows that are due, and the next ones come behind those that the stream was given; one
 * behind a stream's length is none. */
fl_error fl_run(const fl_model *model, fl_call *call);

/* Bytes of what fl_prepare makes for one state; 0: nothing, and fl_prepare does nothing. Such memory
 * is zero at first, and begins at a multiple of FL_ALIGNMENT bytes. */
size_t fl_prepared_size(const fl_model *model);

/* Make what of the next step of `states` does not need its input, where `prepared` does not have it
 * yet. T is 0; inputs and outputs are not read, and the states stay as they are. fl_run of one step
 * without resets reads it, fl_run and fl_begin drop it. Who changes a state otherwise, or the model, drops it
 * himself. */
fl_error fl_prepare(const fl_model *model, fl_call *call);

/* Have nothing made; of NULL it does nothing. */
void fl_drop(void *prepared);

/* The rows that are due at the end of the sequences. T is 0, and the states stay as they are. */
fl_error fl_flush(const fl_model *model, fl_call *call);

/* Only count: `rows` is what fl_run, or where `ending` is not 0 fl_flush, would give of each output
 * in these states, which is what the outputs must have room for. Outputs are not read, and of inputs
 * only held ones of a call with resets. */
fl_error fl_count_rows(const fl_model *model, fl_call *call, int ending);

#ifdef __cplusplus
}
#endif
#endif
