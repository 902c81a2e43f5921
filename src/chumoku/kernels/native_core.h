// What native.cpp (threads, choice of instructions) asks of native_core.cpp (the arithmetic).
#pragma once

#include <cstdint>

namespace chumoku {

// The order of this list is part of the interface: kernels/native.py numbers storages the same way.
enum Storage : int { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K };

// y[tokens, outputs] = x[tokens, inputs] weight[outputs, inputs]^T + bias[outputs]; bias may be null.
struct Linear {
    Storage storage;
    const float *x;
    const uint8_t *weight;
    const float *bias;
    float *y;
    int64_t tokens, inputs, outputs;
};

constexpr int MOST_TOKENS = 512;  // of one call of Core::product

// One build of the arithmetic for one set of instructions.
struct Core {
    const char *name;
    // The outputs first..last-1 of every token.
    void (*linear)(const Linear &job, int64_t first, int64_t last);
    // The same product by tiles, faster for many tokens: each chunk of `chunk` outputs.
    int chunk;
    void (*product)(const Linear &job, int64_t first, int64_t last);
    // count values, a whole number of blocks, as float32.
    void (*decode)(Storage storage, const uint8_t *raw, float *out, int64_t count);
    // SiLU(gate) * up of the values first..last-1, float32 or bfloat16.
    void (*silu_product)(Storage type, const void *gate, const void *up, void *y, int64_t first, int64_t last);
    // RMSNorm of the rows first..last-1, float32 or bfloat16.
    void (*rms_norm)(Storage type, const void *x, const void *weight, void *y, int64_t width, float eps,
                     int64_t first, int64_t last);
    // count values, float32 or bfloat16: `value` with probability keep, else 0. state: the 624 words of
    // MT19937, next: the first that is not yet used (624: none); both are moved on.
    void (*bernoulli)(Storage type, uint32_t *state, int *next, double keep, float value, void *noise, int64_t count);
    // GELU, exact or by the tanh approximation, of the values first..last-1 and, unless it is null,
    // its slope there.
    void (*gelu)(bool exact, const float *x, float *y, float *slope, int64_t first, int64_t last);
};

extern const Core core_portable;
#if defined(CHUMOKU_X86)
extern const Core core_avx2;
extern const Core core_avx512;
#endif

}  // namespace chumoku
