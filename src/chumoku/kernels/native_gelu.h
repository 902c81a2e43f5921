// The tanh approximation of GELU and its slope in one pass, for training: both need the same exponential.
#pragma once

#include <stdint.h>
#include <string.h>

namespace chumoku {
namespace {

inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// e^-u for u in [0, 87], to 2e-7: 2^n by its bits, times a Taylor polynomial in the rest.
inline float exp_minus(float u) {
    const int32_t n = int32_t(u * 1.44269504f + 0.5f);
    const float rest = fused(float(n), 0.693145752f, -u) + float(n) * 1.42860677e-6f;  // ln 2 in two parts
    float p = 1.98412698e-4f;
    p = fused(p, rest, 1.38888889e-3f);
    p = fused(p, rest, 8.33333333e-3f);
    p = fused(p, rest, 4.16666667e-2f);
    p = fused(p, rest, 1.66666667e-1f);
    p = fused(p, rest, 0.5f);
    p = fused(p, rest, 1.0f);
    p = fused(p, rest, 1.0f);
    const int32_t bits = (127 - n) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

// y = x P(x), slope = P(x) + x P'(x), P = 1 / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3) (1606.08415,
// section 2).
void gelu_tanh(const float *__restrict x, float *__restrict y, float *__restrict slope, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        const float a = x[i], square = a * a;
        const float twice = 1.59576912f * a * fused(0.044715f, square, 1.0f);
        const float size = twice < 0 ? -twice : twice, e = exp_minus(size < 87.0f ? size : 87.0f);
        const float share = 1.0f / (1.0f + e), below = twice < 0 ? e * share : share;
        y[i] = a * below;
        const float rise = 1.59576912f * fused(0.134145f, square, 1.0f);
        slope[i] = fused(e * share * share * rise, a, below);
    }
}

}  // namespace
}  // namespace chumoku
