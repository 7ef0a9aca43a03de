/* steps.c - an exported model on a Cortex-M: rows of input.h in, a line of bits out for each row, then
 * the instructions of a step and the bytes of memory. tools/targets.py builds and runs it.
 *
 * Nothing here is of a board but the clock: the emulator, told so, takes a nanosecond for each
 * instruction, and the counter of the core counts at 25 MHz, so one count is 40 instructions.
 */
#include <stdint.h>

#include "fastlstm.h"
#include "input.h"
#include "model.h"

enum { INSTRUCTIONS_A_COUNT = 40, MEMORY = 1 << 20 };

/* SysTick and the access of the floating-point unit: Armv7-M ARM B3.3 and B3.2.20. */
#define CONTROL (*(volatile uint32_t *)0xe000e010)
#define RELOAD (*(volatile uint32_t *)0xe000e014)
#define COUNTER (*(volatile uint32_t *)0xe000e018)
#define ACCESS (*(volatile uint32_t *)0xe000ed88)

extern char stack_top[];
void start(void);

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {stack_top,
                                                                               (void *)start};

/* Arm's semihosting: the debugger does what r0 says with what r1 is. */
static void ask(uint32_t what, const void *with) {
    register uint32_t r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = with;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void say(const char *text) { ask(4, text); }

static void say_number(const char *what, uint32_t number, const char *behind) {
    char digits[11];
    char *at = digits + sizeof digits - 1;
    *at = 0;
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    say(what), say(at), say(behind);
}

static void leave(const char *why) {
    say(why);
    ask(0x18, (const void *)0x20026); /* the program ended */
    for (;;) continue;
}

static _Alignas(64) unsigned char memory[MEMORY];

static void *take(uint32_t bytes, uint32_t *used) {
    void *at = memory + *used;
    *used += (bytes + 63) / 64 * 64;
    if (*used > MEMORY) leave("FAILED: more memory than there is\n");
    return at;
}

static void check(fl_error error, const char *message) {
    if (error) say(*message ? message : fl_error_text(error)), leave("\nFAILED\n");
}

static void run(void) {
    const fl_model_config how = {.struct_size = sizeof how, .type = FL_FLOAT32};
    const fl_stream_config room = {.struct_size = sizeof room, .T = 1, .B = 1};
    static float y[ROWS][OUTPUTS];
    char message[128] = "";
    const fl_program *program;
    const fl_model *model;
    fl_stream *stream;
    uint32_t used = 0, counts = 0;
    size_t size;
    check(fl_open_size(MODEL, MODEL_BYTES, &size, message, sizeof message), message);
    check(fl_open(MODEL, MODEL_BYTES, take(size, &used), size, &program, message, sizeof message),
          message);
    check(fl_model_size(program, &how, &size, message, sizeof message), message);
    check(fl_model_init(program, &how, NULL, 0, take(size, &used), size, &model, message,
                        sizeof message),
          message);
    check(fl_stream_size(model, &room, &size), "");
    check(fl_stream_init(model, &room, take(size, &used), size, &stream), "");
    RELOAD = 0xffffff;
    CONTROL = 5; /* counts the core's clock, and interrupts nobody */
    for (int t = 0; t < ROWS; ++t) {
        const uint32_t before = COUNTER;
        check(fl_step(stream, INPUT[t], y[t]), "");
        counts += (before - COUNTER) & 0xffffff;
    }
    for (int t = 0; t < ROWS; ++t)
        for (int o = 0; o < OUTPUTS; ++o) {
            union { float number; uint32_t bits; } of = {y[t][o]};
            say_number("", of.bits, "\n");
        }
    say_number("instructions ", counts / ROWS * INSTRUCTIONS_A_COUNT, "\n");
    say_number("memory ", used, "\n");
    say(fl_model_isa(model));
    leave("\n");
}

void start(void) {
    ACCESS |= 0xf << 20;
    __asm__ volatile("dsb\nisb");
    run();
}

/* newlib asks these of a system. */
void *_sbrk(int more);
void *_sbrk(int more) { return (void)more, (void *)-1; }
