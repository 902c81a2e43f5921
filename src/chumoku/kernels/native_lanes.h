// Sixteen float lanes and sixteen bytes, for AVX-512, for AVX2, and in plain C++ for any processor.
//
// Only plain C headers here: a shared inline function compiled with AVX-512 could otherwise be the
// one that the linker keeps for every build.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace chumoku {
namespace {

constexpr int LANES = 16;

#if defined(__AVX512F__)

struct Lanes {
    __m512 v;
};
inline Lanes splat(float a) { return {_mm512_set1_ps(a)}; }
inline Lanes load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline Lanes from_floats(const uint8_t *p) { return {_mm512_loadu_ps(p)}; }
inline void store(float *p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes add_product(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes from_unsigned(__m128i a) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(a))}; }
inline Lanes from_signed(__m128i a) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a))}; }
inline Lanes from_halves(const uint8_t *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))}; }
inline Lanes from_bfloats(const uint8_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

// Sums of four times sixteen lanes, each by the same tree, into out[0..3].
inline void sum_four(const Lanes *a, float *out) {
    auto fold = [](__m512 p, __m512 q) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x44), _mm512_shuffle_f32x4(p, q, 0xEE));
    };
    // After two folds each 128-bit group holds the four partial sums of one row, in the order 0 2 1 3.
    __m512 first = fold(a[0].v, a[1].v), second = fold(a[2].v, a[3].v);
    __m512 even = _mm512_shuffle_f32x4(first, second, 0x88), odd = _mm512_shuffle_f32x4(first, second, 0xDD);
    __m512 four = _mm512_add_ps(even, odd);
    __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4E));
    __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xB1));
    const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(places, one)));
}
constexpr int TILE_ROWS = 4, TILE_TOKENS = 4;
constexpr int OUTER_TOKENS = 8, OUTER_LANES = 3;

#elif defined(__AVX2__)

struct Lanes {
    __m256 low, high;
};
inline Lanes splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline Lanes load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Lanes from_floats(const uint8_t *p) { return load((const float *)p); }
inline void store(float *p, Lanes a) {
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
}
inline Lanes multiply(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes add_product(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes from_unsigned(__m128i a) {
    __m256i low = _mm256_cvtepu8_epi32(a), high = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(a, a));
    return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
}
inline Lanes from_signed(__m128i a) {
    __m256i low = _mm256_cvtepi8_epi32(a), high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(a, a));
    return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
}
inline Lanes from_halves(const uint8_t *p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
inline __m256 eight_bfloats(const uint8_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Lanes from_bfloats(const uint8_t *p) { return {eight_bfloats(p), eight_bfloats(p + 16)}; }

inline void sum_four(const Lanes *a, float *out) {
    __m128 four[4];
    for (int r = 0; r < 4; r++) {
        __m256 eight = _mm256_add_ps(a[r].low, a[r].high);
        four[r] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    }
    auto fold = [](__m128 p, __m128 q) { return _mm_add_ps(_mm_movelh_ps(p, q), _mm_movehl_ps(q, p)); };
    __m128 first = fold(four[0], four[1]), second = fold(four[2], four[3]);
    __m128 even = _mm_shuffle_ps(first, second, 0x88), odd = _mm_shuffle_ps(first, second, 0xDD);
    _mm_storeu_ps(out, _mm_add_ps(even, odd));
}
constexpr int TILE_ROWS = 2, TILE_TOKENS = 2;
constexpr int OUTER_TOKENS = 6, OUTER_LANES = 1;

#endif

#if defined(__AVX2__)

// to[j][i] = from[i][j] for four by four values; strides in values.
inline void turn_four(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_stride);
    __m128 c = _mm_loadu_ps(from + 2 * from_stride), d = _mm_loadu_ps(from + 3 * from_stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + to_stride, b);
    _mm_storeu_ps(to + 2 * to_stride, c);
    _mm_storeu_ps(to + 3 * to_stride, d);
}

using Bytes = __m128i;
inline Bytes load_bytes(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
inline Bytes masked(Bytes a, int mask) { return _mm_and_si128(a, _mm_set1_epi8(char(mask))); }
inline Bytes either(Bytes a, Bytes b) { return _mm_or_si128(a, b); }
// (a >> shift) & mask and (a & mask) << shift, byte by byte; mask must clear what crosses a border.
inline Bytes field(Bytes a, int shift, int mask) { return masked(_mm_srli_epi16(a, shift), mask); }
inline Bytes raised(Bytes a, int mask, int shift) { return _mm_slli_epi16(masked(a, mask), shift); }
// 0x10 where a bit is set: sixteen bits to sixteen bytes.
inline Bytes fifth_bits(const uint8_t *p) {
    const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m128i places = _mm_set1_epi64x(int64_t(0x8040201008040201u));
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    __m128i copies = _mm_shuffle_epi8(_mm_cvtsi32_si128(bits), spread);
    return masked(_mm_cmpeq_epi8(_mm_and_si128(copies, places), places), 16);
}

#else  // any processor: plain loops, which compilers vectorise

struct Lanes {
    float v[LANES];
};
struct Bytes {
    uint8_t v[LANES];
};

template <class Value>
inline Lanes each(Value value) {
    Lanes a;
    for (int i = 0; i < LANES; i++) a.v[i] = value(i);
    return a;
}
template <class Value>
inline Bytes each_byte(Value value) {
    Bytes a;
    for (int i = 0; i < LANES; i++) a.v[i] = uint8_t(value(i));
    return a;
}
inline float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline float half_to_float(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, size = bits & 0x7FFF;
    if (size >= 0x7C00) return bits_to_float(sign | 0x7F800000 | (size << 13));
    if (size >= 0x0400) return bits_to_float(sign | ((size << 13) + (112u << 23)));
    float tiny = float(size) * 5.9604644775390625e-8f;  // 2^-24, the unit of subnormal halves
    return sign ? -tiny : tiny;
}
inline uint16_t load_u16(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}
inline Lanes splat(float a) {
    return each([&](int) { return a; });
}
inline Lanes load(const float *p) {
    return each([&](int i) { return p[i]; });
}
inline Lanes from_floats(const uint8_t *p) {  // stored rows need not be aligned
    Lanes a;
    memcpy(a.v, p, sizeof a.v);
    return a;
}
inline void store(float *p, Lanes a) { memcpy(p, a.v, sizeof a.v); }
inline Lanes multiply(Lanes a, Lanes b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes subtract(Lanes a, Lanes b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes add_product(Lanes a, Lanes b, Lanes c) {
#if defined(__FP_FAST_FMAF)
    return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
#else
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
}
inline Lanes from_unsigned(Bytes a) {
    return each([&](int i) { return float(a.v[i]); });
}
inline Lanes from_signed(Bytes a) {
    return each([&](int i) { return float(int8_t(a.v[i])); });
}
inline Lanes from_halves(const uint8_t *p) {
    return each([&](int i) { return half_to_float(load_u16(p + 2 * i)); });
}
inline Lanes from_bfloats(const uint8_t *p) {
    return each([&](int i) { return bits_to_float(uint32_t(load_u16(p + 2 * i)) << 16); });
}
inline void sum_four(const Lanes *rows, float *out) {
    for (int r = 0; r < 4; r++) {
        Lanes a = rows[r];
        for (int step = LANES / 2; step > 0; step /= 2)
            for (int i = 0; i < step; i++) a.v[i] += a.v[i + step];
        out[r] = a.v[0];
    }
}
constexpr int TILE_ROWS = 1, TILE_TOKENS = 1;
constexpr int OUTER_TOKENS = 4, OUTER_LANES = 1;

inline void turn_four(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) to[j * to_stride + i] = from[i * from_stride + j];
}

inline Bytes load_bytes(const uint8_t *p) {
    return each_byte([&](int i) { return p[i]; });
}
inline Bytes masked(Bytes a, int mask) {
    return each_byte([&](int i) { return a.v[i] & mask; });
}
inline Bytes either(Bytes a, Bytes b) {
    return each_byte([&](int i) { return a.v[i] | b.v[i]; });
}
inline Bytes field(Bytes a, int shift, int mask) {
    return each_byte([&](int i) { return (a.v[i] >> shift) & mask; });
}
inline Bytes raised(Bytes a, int mask, int shift) {
    return each_byte([&](int i) { return (a.v[i] & mask) << shift; });
}
inline Bytes fifth_bits(const uint8_t *p) {
    return each_byte([&](int i) { return ((p[i / 8] >> (i % 8)) & 1) << 4; });
}

#endif

inline float half(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
#if defined(__AVX2__)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
#else
    return half_to_float(bits);
#endif
}

}  // namespace
}  // namespace chumoku
