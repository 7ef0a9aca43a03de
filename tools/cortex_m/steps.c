/* steps.c - a specialised model on a Cortex-M: rows of input.h in, a line of bits out for each row,
 * then the instructions of a step and the bytes of a stream. tools/targets.py builds and runs it.
 *
 * Nothing here is of a board but the clock: the emulator, told so, takes a nanosecond for each
 * instruction, and the counter of the core counts at 25 MHz, so one count is 40 instructions.
 */
#include <stdint.h>

#include "input.h"
#include "model.h"

enum { INSTRUCTIONS_A_COUNT = 40 };

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

static void run(void) {
    static model stream;
    static float y[ROWS][model_y];
    uint32_t counts = 0;
    model_init(&stream);
    RELOAD = 0xffffff;
    CONTROL = 5; /* counts the core's clock, and interrupts nobody */
    for (int t = 0; t < ROWS; ++t) {
        const uint32_t before = COUNTER;
        model_step(&stream, INPUT[t], y[t]);
        counts += (before - COUNTER) & 0xffffff;
    }
    for (int t = 0; t < ROWS; ++t)
        for (int o = 0; o < model_y; ++o) {
            union { float number; uint32_t bits; } of = {y[t][o]};
            say_number("", of.bits, "\n");
        }
    say_number("instructions ", counts / ROWS * INSTRUCTIONS_A_COUNT, "\n");
    say_number("stream ", sizeof stream, "\n");
    leave("");
}

void start(void) {
    ACCESS |= 0xf << 20;
    __asm__ volatile("dsb\nisb");
    run();
}
