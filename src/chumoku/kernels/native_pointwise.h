// Functions of single values and of rows in one pass over memory, where PyTorch takes several. Plain
// loops, which compilers vectorise for each set of instructions.
#pragma once

#include <stdint.h>
#include <string.h>

// A call that stays one keeps its loop from being vectorised, four to eight times slower.
#if defined(_MSC_VER)
#define CHUMOKU_INLINE __forceinline
#else
#define CHUMOKU_INLINE inline __attribute__((always_inline))
#endif

namespace chumoku {
namespace {

CHUMOKU_INLINE float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// e^-u to 2e-7, u held within [-87, 87] (a NaN stays one): 2^n by its bits, times a Taylor polynomial
// in the rest. No branch, which a loop could not be vectorised around.
CHUMOKU_INLINE float exp_minus(float u) {
    u = u < -87.0f ? -87.0f : u;
    u = u > 87.0f ? 87.0f : u;
    const float n = (u * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: what is added rounds
    const float rest = fused(n, 0.693145752f, -u) + n * 1.42860677e-6f;  // ln 2 in two parts
    float p = 1.98412698e-4f;
    p = fused(p, rest, 1.38888889e-3f);
    p = fused(p, rest, 8.33333333e-3f);
    p = fused(p, rest, 4.16666667e-2f);
    p = fused(p, rest, 1.66666667e-1f);
    p = fused(p, rest, 0.5f);
    p = fused(p, rest, 1.0f);
    p = fused(p, rest, 1.0f);
    const int32_t bits = (127 - int32_t(n)) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

// y = x P(x), slope = P(x) + x P'(x), P = 1 / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3) (1606.08415,
// section 2).
template <bool SLOPE>
void gelu_tanh(const float *__restrict x, float *__restrict y, float *__restrict slope, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        const float a = x[i], square = a * a;
        const float e = exp_minus(1.59576912f * a * fused(0.044715f, square, 1.0f));
        const float below = 1.0f / (1.0f + e);
        y[i] = a * below;
        const float rise = 1.59576912f * fused(0.134145f, square, 1.0f);
        if (SLOPE) slope[i] = fused(e * below * below * rise, a, below);
    }
}

// y = x P(x), slope = P(x) + x p(x), P and p the normal distribution and its density (1606.08415, eq. 2);
// 1 - erf by Abramowitz & Stegun, 7.1.26, to 2e-7.
template <bool SLOPE>
void gelu_exact(const float *__restrict x, float *__restrict y, float *__restrict slope, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        const float a = x[i], e = exp_minus(0.5f * a * a);
        const float t = 1.0f / fused(0.3275911f * 0.70710678f, __builtin_fabsf(a), 1.0f);
        float p = 1.061405429f;
        p = fused(p, t, -1.453152027f);
        p = fused(p, t, 1.421413741f);
        p = fused(p, t, -0.284496736f);
        p = fused(p, t, 0.254829592f);
        const float tail = 0.5f * p * t * e, rest = 1.0f - tail, below = a < 0 ? tail : rest;
        y[i] = a * below;
        if (SLOPE) slope[i] = fused(0.39894228f * a, e, below);
    }
}

// A stored value as float32 and back, rounded to the nearest even.
struct Single {
    using Stored = float;
    static CHUMOKU_INLINE float get(float a) { return a; }
    static CHUMOKU_INLINE float put(float a) { return a; }
};
struct Brain {
    using Stored = uint16_t;
    static CHUMOKU_INLINE float get(uint16_t a) {
        const uint32_t bits = uint32_t(a) << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    static CHUMOKU_INLINE uint16_t put(float a) {
        uint32_t bits;
        memcpy(&bits, &a, sizeof bits);
        // A NaN must not round up to infinity.
        const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        return uint16_t(a != a ? 0x7FC0u : rounded);
    }
};

// y = SiLU(gate) * up, the hidden layer of SwiGLU (2002.05202, eq. 6), SiLU rounded to the stored type.
template <class Type>
void silu_product(const typename Type::Stored *__restrict gate, const typename Type::Stored *__restrict up,
                  typename Type::Stored *__restrict y, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        const float a = Type::get(gate[i]), silu = a / (1.0f + exp_minus(a));
        y[i] = Type::put(Type::get(Type::put(silu)) * Type::get(up[i]));
    }
}

// y = weight * (x / sqrt(mean(x^2) + eps)) for rows first..last-1 (1910.07467, eq. 4), what stands in
// brackets rounded to the stored type. A row's squares are added in 32 lanes, then one after another.
template <class Type>
void rms_norm(const typename Type::Stored *__restrict x, const typename Type::Stored *__restrict weight,
              typename Type::Stored *__restrict y, int64_t width, float eps, int64_t first, int64_t last) {
    constexpr int WAYS = 32;
    for (int64_t row = first; row < last; row++) {
        const typename Type::Stored *from = x + row * width;
        typename Type::Stored *to = y + row * width;
        float sums[WAYS] = {};
        int64_t i = 0;
        for (; i + WAYS <= width; i += WAYS)
            for (int n = 0; n < WAYS; n++) {
                const float a = Type::get(from[i + n]);
                sums[n] = fused(a, a, sums[n]);
            }
        for (; i < width; i++) sums[0] = fused(Type::get(from[i]), Type::get(from[i]), sums[0]);
        float sum = 0;
        for (int n = 0; n < WAYS; n++) sum += sums[n];
        const float scale = 1.0f / __builtin_sqrtf(sum / float(width) + eps);
        for (i = 0; i < width; i++)
            to[i] = Type::put(Type::get(weight[i]) * Type::get(Type::put(Type::get(from[i]) * scale)));
    }
}

}  // namespace
}  // namespace chumoku
