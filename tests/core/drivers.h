/* drivers.h - what the one program of the tests in C does for its other words. */
#ifndef DRIVERS_H
#define DRIVERS_H

/* Streams as a request asks for them (stream_driver.c). */
int run_streams(const char *request, const char *answer);

/* Arguments and files that must be refused (refusal_driver.c): 0, or a line for each that was not.
 * The models of the files have a row for each step, held inputs, rows that depend on later ones. */
int refuse_arguments(const char *plain, const char *held, const char *ahead);
int refuse_changes(const char *file);

#endif
