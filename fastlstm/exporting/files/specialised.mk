# Built by `make`: run, and @name@.o for programs of yours. -ffp-contract=off keeps the numbers what
# the library's are.

CC ?= cc
CFLAGS ?= -O3
FLAGS = -std=c11 -ffp-contract=off

run: run.o @name@.o
	$(CC) $(LDFLAGS) -o $@ $^ -lm

%.o: %.c @name@.h
	$(CC) $(CFLAGS) $(FLAGS) -c -o $@ $<

clean:
	rm -f run *.o

.PHONY: clean
