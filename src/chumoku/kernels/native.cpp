// The C interface of the native kernels, loaded with ctypes by kernels/native.py: it chooses the
// build of the arithmetic that the processor can run and deals rows out to threads.

#include <atomic>
#include <cstdint>

#include "native_core.h"

#if defined(_WIN32)
#define CHUMOKU_EXPORT extern "C" __declspec(dllexport)
#else
#define CHUMOKU_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace chumoku {
namespace {

// OpenMP's entry point, from the library that PyTorch itself uses: fn runs once in each thread.
using Parallel = void (*)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);

const Core *core_of(int level) {
    switch (level) {
        case 0: return &core_portable;
#if defined(CHUMOKU_X86)
        case 1:
            if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
            return __builtin_cpu_supports("f16c") ? &core_avx2 : nullptr;
        case 2:
            if (!core_of(1) || !__builtin_cpu_supports("avx512f")) return nullptr;
            if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")) return nullptr;
            return __builtin_cpu_supports("avx512vl") ? &core_avx512 : nullptr;
#endif
        default: return nullptr;
    }
}

// Runs body(first, last) over 0..total in pieces. Threads claim pieces as they become free, so a
// busy neighbour slows the whole as little as can be; results do not depend on who computes what.
template <class Body>
struct Shared {
    const Body &body;
    const int64_t total, piece;
    std::atomic<int64_t> next{0};

    static void run(void *data) {
        auto &self = *static_cast<Shared *>(data);
        for (;;) {
            int64_t first = self.next.fetch_add(self.piece, std::memory_order_relaxed);
            if (first >= self.total) return;
            int64_t last = first + self.piece;
            self.body(first, last < self.total ? last : self.total);
        }
    }
};

constexpr int64_t WORTH_A_THREAD = 100000;  // multiplications; below it a thread costs more than it saves

// cost: multiplications for one of `total`; a piece is a multiple of `grain`.
template <class Body>
void share(const Body &body, int64_t total, int64_t cost, int64_t grain, int threads, void *parallel) {
    if (cost * total / WORTH_A_THREAD < threads) threads = int(cost * total / WORTH_A_THREAD);
    if (threads < 2 || !parallel) return body(int64_t(0), total);
    int64_t piece = total / (threads * 8) / grain * grain;
    Shared<Body> work{body, total, piece < grain ? grain : piece};
    reinterpret_cast<Parallel>(parallel)(Shared<Body>::run, &work, unsigned(threads), 0);
}

}  // namespace
}  // namespace chumoku

using namespace chumoku;

// Rises with every change of this interface.
CHUMOKU_EXPORT int chumoku_interface() { return 4; }

// Name of the instructions of a level (0 portable, 1 AVX2, 2 AVX-512); null where this processor
// or this build lacks them.
CHUMOKU_EXPORT const char *chumoku_level(int level) {
    const Core *core = core_of(level);
    return core ? core->name : nullptr;
}

// y[tokens, outputs] = x[tokens, inputs] weight[outputs, inputs]^T + bias; bias may be null.
CHUMOKU_EXPORT int chumoku_block_linear(int level, int storage, const float *x, const uint8_t *weight,
                                        const float *bias, float *y, int64_t tokens, int64_t inputs,
                                        int64_t outputs, int threads, void *parallel) {
    const Core *core = core_of(level);
    if (!core || storage < F32 || storage > Q6_K) return 1;
    const Linear job{Storage(storage), x, weight, bias, y, tokens, inputs, outputs};
    auto body = [&](int64_t first, int64_t last) { core->linear(job, first, last); };
    share(body, outputs, tokens * inputs, 4, threads, parallel);
    return 0;
}

// As chumoku_block_linear, by tiles: faster for many tokens, with sums in another order.
CHUMOKU_EXPORT int chumoku_block_product(int level, int storage, const float *x, const uint8_t *weight,
                                         const float *bias, float *y, int64_t tokens, int64_t inputs,
                                         int64_t outputs, int threads, void *parallel) {
    const Core *core = core_of(level);
    if (!core || storage < F32 || storage > Q6_K || inputs < 1) return 1;
    for (int64_t start = 0; start < tokens; start += MOST_TOKENS) {
        const int64_t here = tokens - start < MOST_TOKENS ? tokens - start : MOST_TOKENS;
        const Linear job{Storage(storage), x + start * inputs, weight, bias, y + start * outputs, here, inputs, outputs};
        auto body = [&](int64_t first, int64_t last) { core->product(job, first, last); };
        share(body, (outputs + core->chunk - 1) / core->chunk, core->chunk * here * inputs, 1, threads, parallel);
    }
    return 0;
}

// rows of `values` values each, stored in row_bytes bytes -> float32.
CHUMOKU_EXPORT int chumoku_dequantize(int level, int storage, const uint8_t *raw, float *out, int64_t rows,
                                      int64_t values, int64_t row_bytes, int threads, void *parallel) {
    const Core *core = core_of(level);
    if (!core || storage < F32 || storage > Q6_K) return 1;
    auto body = [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++)
            core->decode(Storage(storage), raw + row * row_bytes, out + row * values, values);
    };
    share(body, rows, values, 4, threads, parallel);
    return 0;
}

// y = SiLU(gate) * up; type: F32 or BF16.
CHUMOKU_EXPORT int chumoku_silu_product(int level, int type, const void *gate, const void *up, void *y, int64_t count,
                                        int threads, void *parallel) {
    const Core *core = core_of(level);
    if (!core || (type != F32 && type != BF16)) return 1;
    auto body = [&](int64_t first, int64_t last) { core->silu_product(Storage(type), gate, up, y, first, last); };
    share(body, count, 16, 4096, threads, parallel);
    return 0;
}

// y = RMSNorm of each row, times weight[width]; type: F32 or BF16.
CHUMOKU_EXPORT int chumoku_rms_norm(int level, int type, const void *x, const void *weight, void *y, int64_t rows,
                                    int64_t width, float eps, int threads, void *parallel) {
    const Core *core = core_of(level);
    if (!core || (type != F32 && type != BF16)) return 1;
    auto body = [&](int64_t first, int64_t last) {
        core->rms_norm(Storage(type), x, weight, y, width, eps, first, last);
    };
    share(body, rows, 4 * width, 4, threads, parallel);
    return 0;
}

// noise = value with probability keep, else 0, by the generator whose state is given and moved on
// (Core::bernoulli); type: F32 or BF16. One thread: numbers follow from each other.
CHUMOKU_EXPORT int chumoku_bernoulli(int level, int type, void *state, void *next, void *noise, int64_t count,
                                     double keep, float value, int, void *) {
    const Core *core = core_of(level);
    if (!core || (type != F32 && type != BF16)) return 1;
    core->bernoulli(Storage(type), (uint32_t *)state, (int *)next, keep, value, noise, count);
    return 0;
}

// y = GELU(x), exact or by the tanh approximation, and its slope; slope may be null.
CHUMOKU_EXPORT int chumoku_gelu(int level, int exact, const float *x, float *y, float *slope, int64_t count,
                                int threads, void *parallel) {
    const Core *core = core_of(level);
    if (!core) return 1;
    auto body = [&](int64_t first, int64_t last) { core->gelu(exact, x, y, slope, first, last); };
    share(body, count, 16, 4096, threads, parallel);
    return 0;
}
