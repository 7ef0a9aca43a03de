/* Which instruction set this is compiled for.
 *
 * Alone, the file is the whole engine for the instruction set that the compiler's flags say is there
 * (-march=native, -mavx2 -mfma, -msimd128, -mcpu=cortex-m7, ...): FL_ISA_<NAME> chooses another.
 *
 * For many processors it is compiled several times: once with -DFL_KERNELS_APART, which has
 * everything else and asks the processor which kernel to take, and once for each of them with
 * -DFL_ONLY_KERNEL and -DFL_ISA_AVX512AMX, -DFL_ISA_AVX512VNNI, -DFL_ISA_AVX512, -DFL_ISA_AVXVNNI,
 * -DFL_ISA_AVX2, -DFL_ISA_SCALAR and -DFL_ISA_SCALAR64, or -DFL_ISA_NEONDOT and -DFL_ISA_NEON in the
 * place of the first five. No flag of a compiler's chooses AMX: the system may refuse it.
 */
#if defined(__GNUC__) /* each of these builds uses only some of the functions */
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#if !defined(FL_KERNELS_APART) && !defined(FL_ONLY_KERNEL)
#define FL_ALONE
#define FL_WHOLE
#if !defined(FL_ISA_AVX512AMX) && !defined(FL_ISA_AVX512VNNI) && !defined(FL_ISA_AVX512) && \
    !defined(FL_ISA_AVXVNNI) && !defined(FL_ISA_AVX2) && !defined(FL_ISA_NEONDOT) && !defined(FL_ISA_NEON) && \
    !defined(FL_ISA_SIMD128) && !defined(FL_ISA_FUSED) && !defined(FL_ISA_SCALAR) && \
    !defined(FL_ISA_SCALAR64)
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#if defined(__AVX512VNNI__)
#define FL_ISA_AVX512VNNI
#else
#define FL_ISA_AVX512
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#if defined(__AVXVNNI__)
#define FL_ISA_AVXVNNI
#else
#define FL_ISA_AVX2
#endif
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define FL_ISA_NEONDOT
#elif defined(__aarch64__)
#define FL_ISA_NEON
#elif defined(__wasm_simd128__)
#define FL_ISA_SIMD128
#elif defined(__ARM_FEATURE_FMA)
#define FL_ISA_FUSED
#else
#define FL_ISA_SCALAR
#endif
#endif
#endif

