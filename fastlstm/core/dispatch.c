/* dispatch.c - which kernels there are, which of them this processor can run.
 *
 * This is the one place that decides whether wide code may run. Every bit a kernel relies on is
 * tested, and XGETBV that the operating system saves the registers; none of it is wide code itself.
 */
#include <string.h>

#include "model.h"

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

#if defined(__linux__)
/* Whether the system lets this process use tiles, which it does once it is asked: ARCH_REQ_XCOMP_PERM
 * (0x1023) of tile data (18), by arch_prctl (158). That holds for all threads and is not taken back. The
 * system refuses where a thread has a stack for signals too small for tiles. Source: Linux,
 * Documentation/arch/x86/xstate.rst. */
static int may_use_tiles(void) {
    long answer;
    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(158L), "D"(0x1023L), "S"(18L)
                     : "rcx", "r11", "memory");
    return !answer;
}
#else
static int may_use_tiles(void) { return 0; }
#endif

/* Bits: Intel SDM volume 2, CPUID; volume 1, 13.3 (XCR0: 1 SSE, 2 AVX, 5 to 7 AVX-512 state, 17
 * and 18 tiles). */
uint32_t fl_cpu_features(void) {
    uint32_t a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const int fma = (c >> 12) & 1, osxsave = (c >> 27) & 1, avx = (c >> 28) & 1;
    const int f16c = (c >> 29) & 1;
    if (!fma || !osxsave || !avx || !f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const uint64_t saved = xgetbv0();
    const uint32_t wide = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F DQ BW VL */
    const uint32_t tiles = (1u << 24) | (1u << 25); /* AMX-TILE, AMX-INT8 */
    if ((saved & 0x6) == 0x6 && (b & (1u << 5))) found |= FL_CPU_AVX2;
    if (found && (saved & 0xe6) == 0xe6 && (b & wide) == wide) found |= FL_CPU_AVX512;
    if ((found & FL_CPU_AVX512) && (c & (1u << 11))) found |= FL_CPU_AVX512VNNI;
    if ((found & FL_CPU_AVX512VNNI) && (saved & 0x60000) == 0x60000 && (d & tiles) == tiles &&
        may_use_tiles())
        found |= FL_CPU_AMX;
    if (found && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)))
        found |= FL_CPU_AVXVNNI;
    return found;
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
/* NEON is part of the base architecture. Bit 20 of AT_HWCAP, ASIMDDP: Linux, arm64 ELF hwcaps. */
uint32_t fl_cpu_features(void) {
    return FL_CPU_NEON | (getauxval(AT_HWCAP) & (1u << 20) ? FL_CPU_DOT : 0);
}
#elif defined(__ARM_FEATURE_DOTPROD) /* the compiler was told so */
uint32_t fl_cpu_features(void) { return FL_CPU_NEON | FL_CPU_DOT; }
#else
uint32_t fl_cpu_features(void) { return FL_CPU_NEON; }
#endif
#else
uint32_t fl_cpu_features(void) { return 0; }
#endif

extern const fl_kernel fl_avx512amx, fl_avx512vnni, fl_avx512, fl_avxvnni, fl_avx2;
extern const fl_kernel fl_neondot, fl_neon, fl_simd128, fl_fused, fl_scalar, fl_scalar64;

/* A build that wants fewer, as one for one processor does, says which, best first, each with a comma
 * behind it: -DFL_KERNELS='&fl_fused,'. */
#if !defined(FL_KERNELS)
#if defined(__x86_64__)
#if defined(__linux__)
#define FL_OF_TILES &fl_avx512amx,
#else
#define FL_OF_TILES
#endif
#define FL_KERNELS \
    FL_OF_TILES &fl_avx512vnni, &fl_avx512, &fl_avxvnni, &fl_avx2, &fl_scalar, &fl_scalar64,
#elif defined(__aarch64__)
#define FL_KERNELS &fl_neondot, &fl_neon, &fl_scalar, &fl_scalar64,
#elif defined(__wasm_simd128__)
#define FL_KERNELS &fl_simd128, &fl_scalar, &fl_scalar64,
#elif defined(__ARM_FEATURE_FMA)
#define FL_KERNELS &fl_fused, &fl_scalar64,
#else
#define FL_KERNELS &fl_scalar, &fl_scalar64,
#endif
#endif

const fl_kernel *const fl_kernels[] = {FL_KERNELS NULL};

static int can_run(const fl_kernel *kernel, size_t real_size) {
    return kernel->real_size == real_size && !(kernel->needs & ~fl_cpu_features());
}

const fl_kernel *fl_find(const char *name, size_t real_size) {
    for (const fl_kernel *const *k = fl_kernels; *k; ++k)
        if (can_run(*k, real_size) && (!name || !strcmp((*k)->name, name))) return *k;
    return NULL;
}

const char *fl_isa(fl_type type, size_t number) {
    for (const fl_kernel *const *k = fl_kernels; *k; ++k)
        if (can_run(*k, type == FL_FLOAT32 ? sizeof(float) : sizeof(double)) && !number--)
            return (*k)->name;
    return NULL;
}
