/* calls.c - what a caller asks for, checked, -> calls as they run. */
#include <string.h>

#include "arena.h"
#include "call.h"

struct fl_scratch {
    const fl_model *model;
    size_t T, B;
    fl_plan plan;
    void *memory;  /* plan.bytes */
};

static fl_error lay_out_scratch(const fl_model *model, size_t T, size_t B, size_t threads, void *memory,
                        fl_scratch *made, size_t *bytes) {
    fl_arena arena = {memory, SIZE_MAX - 1, 0};
    if (!model || !bytes || !threads) return FL_BAD_ARGUMENT;
    *bytes = 0;
    made->model = model;
    made->T = T;
    made->B = B;
    if (fl_plan_call(model, T, B, threads, &made->plan)) return FL_TOO_LARGE;
    fl_take(&arena, 1, sizeof *made);
    made->memory = fl_take(&arena, made->plan.bytes, 1);
    if (arena.used == SIZE_MAX) return FL_TOO_LARGE;
    *bytes = arena.used;
    return FL_OK;
}

fl_error fl_scratch_size(const fl_model *model, size_t T, size_t B, size_t threads,
                         size_t *bytes) {
    fl_scratch counted;
    return lay_out_scratch(model, T, B, threads, NULL, &counted, bytes);
}

fl_error fl_scratch_init(const fl_model *model, size_t T, size_t B, size_t threads, void *memory,
                         size_t memory_bytes, fl_scratch **made) {
    fl_scratch scratch;
    size_t bytes;
    if (!made) return FL_BAD_ARGUMENT;
    *made = NULL;
    fl_error error = lay_out_scratch(model, T, B, threads, NULL, &scratch, &bytes);
    if (error) return error;
    if (!memory || (uintptr_t)memory % FL_ALIGNMENT || memory_bytes < bytes)
        return FL_LITTLE_MEMORY;
    error = lay_out_scratch(model, T, B, threads, memory, &scratch, &bytes);
    *made = memcpy(memory, &scratch, sizeof scratch);
    return error;
}

int fl_have_threads(const fl_threads *threads) {
    return !threads || (threads->take && threads->run && threads->barrier && threads->leave);
}

/* Whether a pointer is there, and a multiple of `size`, a power of two. */
static int is_at(const void *data, size_t size) { return data && !((uintptr_t)data & (size - 1)); }

void fl_drop(void *prepared) {
    if (prepared) ((fl_prepared *)prepared)->made = 0;
}

static __attribute__((noinline)) void drop_all(void *const *prepared, size_t B) {
    for (size_t b = 0; b < B; ++b) fl_drop(prepared[b]);
}

/* Which inputs a call reads. */
enum { READS_STEPS = 1, READS_HELD = 2 };

/* Whether all that a call reads and writes is there. */
static int is_whole(const fl_model *model, const fl_call *call, int reads, int writes) {
    const fl_program *program = &model->program;
    const size_t size = model->kernel->real_size;
    if (call->B && !call->states) return 0;
    for (size_t b = 0; b < call->B; ++b) {
        if (!is_at(call->states[b], size)) return 0;
        if (call->lengths && call->lengths[b] > call->T) return 0;
    }
    if (writes && program->output_count && !call->outputs) return 0;
    for (size_t i = 0; reads && i < program->input_count; ++i) {
        const fl_value *value = program->value + program->inputs[i];
        const size_t own = value->tokens ? sizeof(int64_t) : size;
        if (!(reads & (value->line < 0 ? READS_HELD : READS_STEPS))) continue;
        if (!call->inputs || !is_at(call->inputs[i].data, own)) return 0;
    }
    for (size_t i = 0; writes && i < program->output_count; ++i)
        if (!is_at(call->outputs[i].data, size)) return 0;
    return 1;
}

/* Whether what fl_prepare makes is where it must be. */
static __attribute__((noinline)) int is_aligned(void *const *prepared, size_t B) {
    for (size_t b = 0; b < B; ++b)
        if ((uintptr_t)prepared[b] % FL_ALIGNMENT) return 0;
    return 1;
}

/* Of another size nothing else is read. */
static int is_call(const fl_call *call) {
    return call && (FL_IS_KNOWN(call, resets) || FL_IS_KNOWN(call, prepared));
}

/* A call as it runs, but for what fl_share sets, or its like. reads: READS_ bits; one that has resets
 * reads held inputs, too. */
static fl_error translate(const fl_model *model, const fl_call *call, int reads, int writes,
                          fl_running *made) {
    if (!model || !is_call(call) || !call->scratch || !fl_have_threads(call->threads))
        return FL_BAD_ARGUMENT;
    made->resets = FL_HAS(call, resets) && call->T ? call->resets : NULL;
    if (made->resets && model->program.looks_ahead) return FL_BAD_ARGUMENT;
    if (made->resets) reads |= READS_HELD;
    const fl_scratch *scratch = call->scratch;
    if (scratch->model != model || call->T > scratch->T || call->B != scratch->B ||
        !is_whole(model, call, reads, writes))
        return FL_BAD_ARGUMENT;
    made->prepared = NULL;
    if (FL_HAS(call, prepared) && model->prepared_bytes) made->prepared = call->prepared;
    if (made->prepared && !is_aligned(made->prepared, call->B)) return FL_BAD_ARGUMENT;
    made->model = model;
    made->T = call->T;
    made->B = call->B;
    made->inputs = call->inputs;
    made->outputs = call->outputs;
    made->lengths = call->lengths;
    made->whole = call->whole;
    made->ending = made->prepares = 0;
    made->states = call->states;
    made->scratch = scratch->memory;
    made->gemm = call->gemm;
    made->watch = NULL;
    made->turn = call->turn;
    made->given = call->rows;
    made->batch = call->B;
    made->threads = call->threads;
    return FL_OK;
}

static void count_none(const fl_model *model, fl_call *call) {
    const size_t n = model->program.output_count * call->B;
    if (call->rows && n) memset(call->rows, 0, n * sizeof *call->rows);
}

static fl_error run_shared(fl_call *call, fl_running *running) {
    fl_watch watch;
    if (call->stop) {
        memset(&watch, 0, sizeof watch);
        watch.ask = call->stop;
        watch.who = call->who;
        running->watch = &watch;
    }
    fl_share(running, &call->scratch->plan);
    call->turn += call->T;
    call->steps_done = running->done;
    return call->stop && watch.stop ? FL_STOPPED : FL_OK;
}

fl_error fl_begin(const fl_model *model, fl_call *call) {
    fl_running running;
    const fl_error error = translate(model, call, READS_HELD, 0, &running);
    if (error || !call->B) return error;
    if (call->T) return FL_BAD_ARGUMENT;
    if (running.prepared) drop_all(running.prepared, call->B);
    running.prepared = NULL;
    fl_begin_alone(&running, &call->scratch->plan);
    return FL_OK;
}

size_t fl_prepared_size(const fl_model *model) { return model ? model->prepared_bytes : 0; }

fl_error fl_prepare(const fl_model *model, fl_call *call) {
    fl_running running;
    size_t wanted = 0;
    const fl_error error = translate(model, call, 0, 0, &running);
    if (error) return error;
    if (call->T || !FL_HAS(call, prepared) || (call->B && !call->prepared))
        return FL_BAD_ARGUMENT;
    if (!running.prepared) return FL_OK;
    for (size_t b = 0; b < call->B; ++b) {
        const fl_prepared *prepared = running.prepared[b];
        wanted += prepared && !prepared->made;
    }
    if (!wanted) return FL_OK;
    running.prepares = 1;
    fl_share(&running, &call->scratch->plan);
    for (size_t b = 0; b < call->B; ++b)
        if (running.prepared[b]) ((fl_prepared *)running.prepared[b])->made = 1;
    return FL_OK;
}

fl_error fl_run(const fl_model *model, fl_call *call) {
    fl_running running;
    const int steps = is_call(call) && call->T;
    const int writes = steps || (model && model->program.looks_ahead);
    const fl_error error = translate(model, call, steps ? READS_STEPS : 0, writes, &running);
    if (error) return error;
    call->steps_done = call->T;
    count_none(model, call);
    if (!call->B) return FL_OK;
    if (call->T) {
        void *const *prepared = running.prepared;
        if (call->T > 1 || running.resets) running.prepared = NULL;
        const fl_error stopped = run_shared(call, &running);
        if (prepared) drop_all(prepared, call->B);
        return stopped;
    }
    running.prepared = NULL;
    /* Without steps there are no rows, but what a sequence that is told whole has besides. */
    running.ending = model->program.looks_ahead;
    return running.ending ? run_shared(call, &running) : FL_OK;
}

fl_error fl_flush(const fl_model *model, fl_call *call) {
    fl_running running;
    const fl_error error = translate(model, call, 0, 1, &running);
    if (error) return error;
    if (call->T) return FL_BAD_ARGUMENT;
    count_none(model, call);
    if (!call->B || model->program.looks_ahead) return FL_OK;
    running.ending = 1;
    running.prepared = NULL;
    return run_shared(call, &running);
}

fl_error fl_count_rows(const fl_model *model, fl_call *call, int ending) {
    fl_running running;
    const fl_error error = translate(model, call, 0, 0, &running);
    if (error) return error;
    if (!call->rows || (ending && call->T)) return FL_BAD_ARGUMENT;
    count_none(model, call);
    const int ahead = model->program.looks_ahead;
    if (!call->B || (ending ? ahead : !call->T && !ahead)) return FL_OK;
    running.ending = ending || !call->T;
    fl_count_alone(&running, &call->scratch->plan);
    return FL_OK;
}
