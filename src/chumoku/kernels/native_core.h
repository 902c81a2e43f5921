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

// One build of the arithmetic for one set of instructions.
struct Core {
    const char *name;
    // The outputs first..last-1 of every token.
    void (*linear)(const Linear &job, int64_t first, int64_t last);
    // The same product by tiles, faster for many tokens: first `pack` for each tile of `tile` tokens
    // (the last may be short), into packed[tiles * tile * inputs], then `product` for each chunk of
    // `chunk` outputs.
    int tile, chunk;
    void (*pack)(const Linear &job, float *packed, int64_t first, int64_t last);
    void (*product)(const Linear &job, const float *packed, int64_t first, int64_t last);
    // count values, a whole number of blocks, as float32.
    void (*decode)(Storage storage, const uint8_t *raw, float *out, int64_t count);
    // GELU, by the tanh approximation, of the values first..last-1 and its slope there.
    void (*gelu_tanh)(const float *x, float *y, float *slope, int64_t first, int64_t last);
};

extern const Core core_portable;
#if defined(CHUMOKU_X86)
extern const Core core_avx2;
extern const Core core_avx512;
#endif

}  // namespace chumoku
