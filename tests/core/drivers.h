/* drivers.h - what the one program of the tests in C does for its other words. */
#ifndef DRIVERS_H
#define DRIVERS_H

#include "driver_words.h"
#include "system.h"
#include "team.h"

/* A team of so many threads, 2 or more, as calls take it; its memory is end_team's. */
static inline fl_threads begin_team(size_t threads) {
#if defined(FL_HAS_THREADS)
    fl_team *team = fl_team_new(threads);
    if (!team) give_up("no team");
    return fl_team_threads(team, threads);
#else
    const fl_threads none = {0};
    if (threads > 1) give_up("there are no threads");
    return none;
#endif
}

static inline void end_team(const fl_threads *team) {
#if defined(FL_HAS_THREADS)
    fl_team_free(team->team);
#else
    (void)team;
#endif
}

/* Run each case of a request, which has words of its own, and write what it answers: 0, or 1 if that
 * cannot be written. */
static inline int run_cases(const char *request, const char *answer,
                            void (*run_case)(reader from, FILE *to)) {
    size_t bytes;
    char *all = read_file(request, &bytes);
    FILE *to = fopen(answer, "wb");
    reader from = {all, all + bytes};
    if (!to) give_up("the answer cannot be written");
    for (size_t cases = read_size(&from); cases; --cases) {
        const size_t own = read_size(&from);
        const char *first = read_bytes(&from, own);
        const reader one = {first, first + own};
        run_case(one, to);
    }
    free(all);
    return fclose(to) != 0;
}

/* Streams as a request asks for them (stream_driver.c). */
int run_streams(const char *request, const char *answer);

/* Arguments and files that must be refused (refusal_driver.c): 0, or a line for each that was not.
 * The models of the files have a row for each step, held inputs, rows that depend on later ones. */
int refuse_arguments(const char *plain, const char *held, const char *ahead);
int refuse_changes(const char *file);

#endif
