/* play.c - a WAV file through a model, block by block, as an audio interface would ask for it.
 *
 *   play IN.wav OUT.wav [--live] [--times N]
 *
 * The callback is what a plugin or a driver calls: a block of frames in, a block out, before the
 * next one is due. Everything it needs was made before, so that it allocates, locks and asks the
 * system nothing. A thread of real time calls it, if the system permits one: without pause, or with
 * --live each block at its time. --times plays the file that often and writes the last.
 *
 * The model has one input and one output of one number each, a row for each step.
 */
#define _GNU_SOURCE /* clock_nanosleep */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "fastlstm_host.h"
#include "model.h"

enum { FRAMES = 64 }; /* of a block */

static int fail(const char *what, const char *why) {
    fprintf(stderr, "play: %s: %s\n", what, why);
    return 1;
}

/* ---- WAV files: one channel, PCM of 16 or 24 bits, or float ---- */

typedef struct {
    uint32_t rate;
    size_t frames;  /* whole blocks of them: the last is filled up with silence, */
    size_t length;  /* from here on */
    float *samples; /* (frames,) */
} sound;

static uint32_t number_at(const unsigned char *bytes, int count) {
    uint32_t made = 0;
    for (int i = 0; i < count; ++i) made |= (uint32_t)bytes[i] << (8 * i);
    return made;
}

static float sample_at(const unsigned char *bytes, int bits, int is_float) {
    const uint32_t word = number_at(bytes, bits / 8) << (32 - bits);
    float made;
    if (!is_float) return (float)(int32_t)word / 2147483648.0f;
    memcpy(&made, &word, sizeof made);
    return made;
}

/* The chunks of a file (size,): what its `fmt ` says, and where its `data` is. */
static const char *read_chunks(const unsigned char *file, size_t size, sound *made) {
    int bits = 0, is_float = 0;
    if (size < 12 || memcmp(file, "RIFF", 4) || memcmp(file + 8, "WAVE", 4))
        return "it is no WAV file";
    for (size_t at = 12; size - at >= 8;) {
        const unsigned char *name = file + at, *body = name + 8;
        size_t bytes = number_at(name + 4, 4);
        at += 8;
        if (bytes > size - at) bytes = size - at;
        if (!memcmp(name, "fmt ", 4) && bytes >= 16) {
            uint32_t format = number_at(body, 2);
            bits = (int)number_at(body + 14, 2);
            made->rate = number_at(body + 4, 4);
            if (format == 0xfffe && bytes >= 26) format = number_at(body + 24, 2);
            is_float = format == 3;
            if (number_at(body + 2, 2) != 1) return "it has more than one channel; expected one";
            const int known = is_float ? bits == 32 : format == 1 && (bits == 16 || bits == 24);
            if (!known || !made->rate)
                return "it is none of PCM of 16 or 24 bits, or float of 32";
        } else if (!memcmp(name, "data", 4) && bits) {
            const size_t each = (size_t)bits / 8;
            made->length = bytes / each;
            made->frames = (made->length + FRAMES - 1) / FRAMES * FRAMES;
            made->samples = calloc(made->frames + 1, sizeof *made->samples);
            for (size_t i = 0; made->samples && i < made->length; ++i)
                made->samples[i] = sample_at(body + i * each, bits, is_float);
            return made->samples ? NULL : "there is no memory";
        }
        at += bytes < size - at ? bytes + bytes % 2 : bytes;
        if (at > size) break;
    }
    return "it has no samples";
}

static const char *read_sound(const char *path, sound *made) {
    FILE *file = fopen(path, "rb");
    long size;
    if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET))
        return "it cannot be read";
    unsigned char *bytes = malloc((size_t)size + 1);
    const size_t got = bytes ? fread(bytes, 1, (size_t)size, file) : 0;
    fclose(file);
    const char *why = got == (size_t)size ? read_chunks(bytes, got, made) : "it cannot be read";
    free(bytes);
    return why;
}

static void put_number(unsigned char *to, uint32_t number, int count) {
    for (int i = 0; i < count; ++i) to[i] = (unsigned char)(number >> (8 * i));
}

/* As float of 32 bits: nothing is clipped. */
static int write_sound(const char *path, const float *samples, size_t length, uint32_t rate) {
    unsigned char head[44] = "RIFF....WAVEfmt ....";
    const uint32_t bytes = (uint32_t)(4 * length);
    FILE *file = fopen(path, "wb");
    if (!file || length > (UINT32_MAX - sizeof head) / 4) return 0;
    put_number(head + 4, bytes + 36, 4);
    put_number(head + 16, 16, 4);
    put_number(head + 20, 3, 2);
    put_number(head + 22, 1, 2);
    put_number(head + 24, rate, 4);
    put_number(head + 28, 4 * rate, 4);
    put_number(head + 32, 4, 2);
    put_number(head + 34, 32, 2);
    memcpy(head + 36, "data", 4);
    put_number(head + 40, bytes, 4);
    const int whole = fwrite(head, sizeof head, 1, file) == 1 &&
                      fwrite(samples, sizeof *samples, length, file) == length;
    return !fclose(file) && whole;
}

/* ---- The callback ---- */

/* What an audio interface calls: `frames` of them, in time. */
static fl_error callback(void *user, const float *in, float *out, size_t frames) {
    const fl_rows x = {(void *)(uintptr_t)in, 1, 0}, y = {out, 1, 0};
    return fl_stream_run(user, frames, &x, &y, NULL);
}

/* ---- What stands for the interface: a thread that calls it ---- */

typedef struct {
    fl_stream *stream;
    const sound *in;
    float *out;        /* (in->frames,) */
    size_t times;
    int live;
    int64_t *took;     /* (times * blocks,) nanoseconds */
    size_t late;       /* blocks that took longer than they last */
    fl_error error;
} interface;

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static void sleep_until(int64_t at) {
    const struct timespec when = {(time_t)(at / 1000000000), (long)(at % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR) continue;
}

/* Without pause, Linux stops a thread of real time that leaves others less than 5 % of each second:
 * after so many nanoseconds it rests for so many. */
enum { RUNS = 20000000, RESTS = 3000000 };

static void *play(void *given) {
    interface *of = given;
    const size_t blocks = of->in->frames / FRAMES;
    const int64_t period = (int64_t)(1e9 * FRAMES / of->in->rate);
    int64_t due = now(), rested = due;
    for (size_t time = 0; time < of->times; ++time) {
        of->error = fl_stream_reset(of->stream, NULL);
        for (size_t i = 0; i < blocks && !of->error; ++i) {
            if (of->live) sleep_until(due += period);
            else if (now() - rested > RUNS) sleep_until(rested = now() + RESTS);
            const int64_t begun = now();
            of->error = callback(of->stream, of->in->samples + i * FRAMES, of->out + i * FRAMES,
                                 FRAMES);
            const int64_t took = now() - begun;
            of->took[time * blocks + i] = took;
            of->late += took > period;
        }
    }
    return NULL;
}

/* A thread of real time, or where that is not permitted a usual one; 0 if there is none. */
static int start(pthread_t *thread, interface *of, int *first) {
    const struct sched_param priority = {.sched_priority = 70};
    pthread_attr_t how;
    pthread_attr_init(&how);
    pthread_attr_setinheritsched(&how, PTHREAD_EXPLICIT_SCHED);
    pthread_attr_setschedpolicy(&how, SCHED_FIFO);
    pthread_attr_setschedparam(&how, &priority);
    *first = !pthread_create(thread, &how, play, of);
    pthread_attr_destroy(&how);
    return *first || !pthread_create(thread, NULL, play, of);
}

static int by_size(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void tell(const interface *of, int first) {
    const size_t n = of->times * (of->in->frames / FRAMES);
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += (double)of->took[i];
    if (!n) return;
    qsort(of->took, n, sizeof *of->took, by_size);
    printf("%zu blocks of %d frames at %u Hz, in a thread %s\n", n, (int)FRAMES,
           (unsigned)of->in->rate, first ? "of real time" : "that is not of real time");
    printf("of real time %.3f %%, p50 %.2f us, p99.9 %.2f us, max %.2f us, late %zu\n",
           100 * sum / (double)n / (1e9 * FRAMES / of->in->rate), (double)of->took[n / 2] / 1e3,
           (double)of->took[n - 1 - n / 1000] / 1e3, (double)of->took[n - 1] / 1e3, of->late);
}

/* ---- All of it ---- */

/* A stream of blocks, of a model that plays audio. */
static const char *make_stream(const fl_model *model, fl_stream **made) {
    const fl_stream_config room = {.struct_size = sizeof room, .T = FRAMES, .B = 1};
    const fl_program *program = fl_model_program(model);
    size_t rows = 0;
    if (fl_count(program, FL_COUNT_INPUTS) != 1 || fl_count(program, FL_COUNT_OUTPUTS) != 1 ||
        fl_input_shape(program, 0).count != 1 || fl_output_shape(program, 0).count != 1 ||
        fl_input_shape(program, 0).tokens || fl_input_shape(program, 0).held)
        return "it does not have one input and one output of one number";
    const fl_error error = fl_stream_new(model, &room, made);
    if (error) return fl_error_text(error);
    if (fl_stream_count(*made, FRAMES, 0, &rows) || rows != FRAMES)
        return "it gives other than a sample for each sample";
    return NULL;
}

static int play_file(const fl_model *model, interface *of, const char *to) {
    const char *why = make_stream(model, &of->stream);
    if (why) return fail("the model", why);
    const size_t blocks = of->in->frames / FRAMES;
    if (of->times > SIZE_MAX / sizeof *of->took / (blocks + 1)) return fail("--times", "too often");
    of->out = calloc(of->in->frames + 1, sizeof *of->out);
    of->took = calloc(of->times * blocks + 1, sizeof *of->took);
    if (!of->out || !of->took) return fail("the samples", "there is no memory");
    mlockall(MCL_CURRENT); /* or not, where that is not permitted */
    pthread_t thread;
    int first;
    if (!start(&thread, of, &first)) return fail("the thread", "it cannot be started");
    pthread_join(thread, NULL);
    if (of->error) return fail("a block", fl_error_text(of->error));
    tell(of, first);
    if (!write_sound(to, of->out, of->in->length, of->in->rate))
        return fail(to, "it cannot be written");
    return 0;
}

int main(int count, char **words) {
    const fl_model_config how = {.struct_size = sizeof how, .type = FL_FLOAT32};
    char message[256] = "";
    sound in = {0, 0, 0, NULL};
    interface of;
    fl_loaded loaded;
    memset(&of, 0, sizeof of);
    of.in = &in;
    of.times = 1;
    for (int i = 3; i < count; ++i) {
        if (!strcmp(words[i], "--live")) of.live = 1;
        else if (strcmp(words[i], "--times") || i + 1 == count) count = 0;
        else of.times = strtoul(words[++i], NULL, 10);
    }
    if (count < 3 || !of.times) return fail("usage", "play IN.wav OUT.wav [--live] [--times N]");
    const char *why = read_sound(words[1], &in);
    if (why) return fail(words[1], why);
    const fl_error error =
        fl_load_bytes(MODEL, MODEL_BYTES, &how, &loaded, message, sizeof message);
    if (error) return fail("the model", *message ? message : fl_error_text(error));
    const int failed = play_file(loaded.model, &of, words[2]);
    fl_stream_free(of.stream);
    fl_unload(&loaded);
    free(in.samples), free(of.out), free(of.took);
    return failed;
}
