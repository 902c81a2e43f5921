// Block formats and the block linear product, compiled once for each set of instructions
// (CHUMOKU_CORE names the build). The definition is kernels/blocks.py; section names are GGUF's.
//
// The order of every sum is fixed: value i of a row goes to lane i % 16, a lane adds in rising
// order of i, and the 16 lanes are added as a tree (i with i+8, then i+4, i+2, i+1). So a result
// depends neither on the number of tokens, nor on other rows, nor on threads, nor, where there is
// a fused multiply-add, on the width of the vectors.
//
// Only plain C headers here: a shared inline function compiled with AVX-512 could otherwise be the
// one that the linker keeps for every build.

#include "native_core.h"

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace chumoku {
namespace {

constexpr int LANES = 16;
constexpr int PART = 32;    // every format is decoded in parts of 32 values
constexpr int ROWS = 4;     // rows computed together for one token
constexpr int GROUP = 16;    // rows decoded together for many tokens
constexpr int PANEL = 256;  // values of a row decoded at a time: the largest block
constexpr int TOKENS = 32;  // tokens that share one decoding of a panel

// ---- sixteen lanes of float, sixteen bytes ----------------------------------------------------

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

#endif

#if defined(__AVX2__)

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

// What a stored number q stands for: scale * (q - zero) + offset. The product of a scale with a
// small whole number is exact in float32, so a fused multiply-add rounds as the definition does.
// An offset of -0 leaves every sum as it is, the sign of zero included.
struct Map {
    Lanes scale, zero, offset;
};
inline Map scaled(float scale, float zero) { return {splat(scale), splat(zero), splat(-0.0f)}; }
inline Map shifted(float scale, float offset) { return {splat(scale), splat(0), splat(offset)}; }
inline Lanes apply(const Map &map, Lanes q) { return add_product(map.scale, subtract(q, map.zero), map.offset); }
inline Lanes apply(const Map &map, Bytes q) { return apply(map, from_unsigned(q)); }

// The same for four-bit numbers, low or high half of sixteen bytes. AVX-512 looks the sixteen
// possible values up in a register.
#if defined(__AVX512F__)
using Nibbles = __m512;
inline Nibbles nibbles(const Map &map) {
    const __m512 all = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return apply(map, Lanes{all}).v;
}
inline Lanes low_nibbles(Nibbles table, const uint8_t *p) {
    return {_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(load_bytes(p)), table)};
}
inline Lanes high_nibbles(Nibbles table, const uint8_t *p) {
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load_bytes(p)), 4), table)};
}
#else
using Nibbles = Map;
inline Nibbles nibbles(const Map &map) { return map; }
inline Lanes low_nibbles(const Nibbles &map, const uint8_t *p) { return apply(map, masked(load_bytes(p), 15)); }
inline Lanes high_nibbles(const Nibbles &map, const uint8_t *p) { return apply(map, field(load_bytes(p), 4, 15)); }
#endif

// ---- formats ----------------------------------------------------------------------------------
// part(block, n, emit) calls emit(first, second) with the n-th 32 values of a block.

struct FormatF32 {
    static constexpr int values = 32, bytes = 128;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        emit(from_floats(p), from_floats(p + 64));
    }
};

struct FormatF16 {
    static constexpr int values = 32, bytes = 64;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        emit(from_halves(p), from_halves(p + 32));
    }
};

struct FormatBF16 {
    static constexpr int values = 32, bytes = 64;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        emit(from_bfloats(p), from_bfloats(p + 32));
    }
};

struct FormatQ4_0 {
    static constexpr int values = 32, bytes = 18;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        Nibbles map = nibbles(scaled(half(p), 8));
        emit(low_nibbles(map, p + 2), high_nibbles(map, p + 2));
    }
};

struct FormatQ4_1 {
    static constexpr int values = 32, bytes = 20;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        Nibbles map = nibbles(shifted(half(p), half(p + 2)));
        emit(low_nibbles(map, p + 4), high_nibbles(map, p + 4));
    }
};

struct FormatQ5_0 {
    static constexpr int values = 32, bytes = 22;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        Map map = scaled(half(p), 16);
        Bytes q = load_bytes(p + 6);
        emit(apply(map, either(masked(q, 15), fifth_bits(p + 2))),
             apply(map, either(field(q, 4, 15), fifth_bits(p + 4))));
    }
};

struct FormatQ5_1 {
    static constexpr int values = 32, bytes = 24;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        Map map = shifted(half(p), half(p + 2));
        Bytes q = load_bytes(p + 8);
        emit(apply(map, either(masked(q, 15), fifth_bits(p + 4))),
             apply(map, either(field(q, 4, 15), fifth_bits(p + 6))));
    }
};

struct FormatQ8_0 {
    static constexpr int values = 32, bytes = 34;
    template <class Emit>
    static inline void part(const uint8_t *p, int, Emit emit) {
        Lanes d = splat(half(p));
        emit(multiply(d, from_signed(load_bytes(p + 2))), multiply(d, from_signed(load_bytes(p + 18))));
    }
};

struct FormatQ2_K {
    static constexpr int values = 256, bytes = 84;
    template <class Emit>
    static inline void part(const uint8_t *p, int n, Emit emit) {
        float d = half(p + 80), dmin = half(p + 82);
        const uint8_t *q = p + 16 + n / 4 * 32;
        auto sixteen = [&](int i) {
            int packed = p[2 * n + i];
            Map map = shifted(d * float(packed & 15), -(dmin * float(packed >> 4)));
            return apply(map, field(load_bytes(q + 16 * i), n % 4 * 2, 3));
        };
        emit(sixteen(0), sixteen(1));
    }
};

struct FormatQ3_K {
    static constexpr int values = 256, bytes = 110;
    template <class Emit>
    static inline void part(const uint8_t *p, int n, Emit emit) {
        float d = half(p + 108);
        const uint8_t *mask = p, *q = p + 32 + n / 4 * 32, *packed = p + 96;
        auto sixteen = [&](int i) {
            int k = 2 * n + i;
            int low = k < 8 ? packed[k] & 15 : packed[k - 8] >> 4;
            int high = (packed[8 + k % 4] >> (k / 4 * 2)) & 3;
            // A set bit of the mask is worth four, and four is taken off everywhere.
            Bytes upper = raised(field(load_bytes(mask + 16 * i), n, 1), 1, 2);
            Bytes value = either(field(load_bytes(q + 16 * i), n % 4 * 2, 3), upper);
            return apply(scaled(d * float((low | (high << 4)) - 32), 4), value);
        };
        emit(sixteen(0), sixteen(1));
    }
};

// The 6-bit scale and minimum of one of eight sub-blocks of Q4_K and Q5_K.
inline Map sub_block(const uint8_t *p, int n) {
    const uint8_t *packed = p + 4;
    int scale, minimum;
    if (n < 4) {
        scale = packed[n] & 63;
        minimum = packed[n + 4] & 63;
    } else {
        scale = (packed[n + 4] & 15) | ((packed[n - 4] >> 6) << 4);
        minimum = (packed[n + 4] >> 4) | ((packed[n] >> 6) << 4);
    }
    return shifted(half(p) * float(scale), -(half(p + 2) * float(minimum)));
}

struct FormatQ4_K {
    static constexpr int values = 256, bytes = 144;
    template <class Emit>
    static inline void part(const uint8_t *p, int n, Emit emit) {
        Nibbles map = nibbles(sub_block(p, n));
        const uint8_t *q = p + 16 + n / 2 * 32;
        if (n % 2 == 0)
            emit(low_nibbles(map, q), low_nibbles(map, q + 16));
        else
            emit(high_nibbles(map, q), high_nibbles(map, q + 16));
    }
};

struct FormatQ5_K {
    static constexpr int values = 256, bytes = 176;
    template <class Emit>
    static inline void part(const uint8_t *p, int n, Emit emit) {
        Map map = sub_block(p, n);
        auto sixteen = [&](int i) {
            Bytes low = field(load_bytes(p + 48 + n / 2 * 32 + 16 * i), n % 2 * 4, 15);
            Bytes fifth = raised(field(load_bytes(p + 16 + 16 * i), n, 1), 1, 4);
            return apply(map, either(low, fifth));
        };
        emit(sixteen(0), sixteen(1));
    }
};

struct FormatQ6_K {
    static constexpr int values = 256, bytes = 210;
    template <class Emit>
    static inline void part(const uint8_t *p, int n, Emit emit) {
        float d = half(p + 208);
        const uint8_t *low = p + n / 4 * 64 + n % 2 * 32, *high = p + 128 + n / 4 * 32;
        auto sixteen = [&](int i) {
            Bytes four = field(load_bytes(low + 16 * i), n % 4 / 2 * 4, 15);
            Bytes two = raised(field(load_bytes(high + 16 * i), n % 4 * 2, 3), 3, 4);
            return apply(scaled(d * float(int8_t(p[192 + 2 * n + i])), 32), either(four, two));
        };
        emit(sixteen(0), sixteen(1));
    }
};

// ---- decoding ---------------------------------------------------------------------------------

// count: a multiple of 32 that does not end within a block, except for the plain formats.
template <class Format>
inline void decode_run(const uint8_t *raw, float *out, int64_t count) {
    int64_t done = 0;
    for (; done + Format::values <= count; done += Format::values, raw += Format::bytes)
#pragma GCC unroll 8
        for (int n = 0; n < Format::values / PART; n++)
            Format::part(raw, n, [&](Lanes first, Lanes second) {
                store(out + done + n * PART, first);
                store(out + done + n * PART + LANES, second);
            });
    if (done < count) {  // only plain floats have rows of any length
        const int64_t left = count - done;
        uint8_t padded[Format::bytes] = {};
        float values[Format::values];
        memcpy(padded, raw, left * (Format::bytes / Format::values));
        Format::part(padded, 0, [&](Lanes first, Lanes second) {
            store(values, first);
            store(values + LANES, second);
        });
        memcpy(out + done, values, left * sizeof(float));
    }
}

// ---- the product ------------------------------------------------------------------------------

template <class Format>
inline int64_t stored_bytes(int64_t count) {
    if (Format::bytes % Format::values == 0) return count * (Format::bytes / Format::values);
    return count / Format::values * Format::bytes;
}

inline Lanes load_part(const float *p, int64_t count) {
    float padded[LANES] = {};
    memcpy(padded, p, count * sizeof(float));
    return load(padded);
}

inline void finish(const Linear &job, const Lanes *lanes, int64_t token, int64_t row, int64_t rows) {
    float sums[ROWS];
    sum_four(lanes, sums);
    float *y = job.y + token * job.outputs + row;
    for (int64_t r = 0; r < rows; r++) y[r] = job.bias ? sums[r] + job.bias[row + r] : sums[r];
}

// One token, four whole rows of whole blocks: decoded values go from registers into the sums.
template <class Format>
void four_rows(const Linear &job, int64_t row, int64_t token) {
    const float *x = job.x + token * job.inputs;
    const int64_t row_bytes = stored_bytes<Format>(job.inputs);
    const uint8_t *raw = job.weight + row * row_bytes;
    Lanes acc[ROWS];
    for (int r = 0; r < ROWS; r++) acc[r] = splat(0);
    for (int64_t c = 0; c < job.inputs; c += Format::values, raw += Format::bytes)
#pragma GCC unroll 8
        for (int n = 0; n < Format::values / PART; n++) {
            const float *here = x + c + n * PART;
            Lanes a = load(here), b = load(here + LANES);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
                Format::part(raw + r * row_bytes, n, [&](Lanes first, Lanes second) {
                    acc[r] = add_product(b, second, add_product(a, first, acc[r]));
                });
        }
    finish(job, acc, token, row, ROWS);
}

// Adds `columns` values of R decoded rows and M tokens into their lanes, lanes[m * GROUP + r].
template <int R, int M>
inline void add_tile(const float *panel, const float *x, int64_t stride, int64_t columns, Lanes *lanes) {
    Lanes acc[M][R];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[m][r] = lanes[m * GROUP + r];
    int64_t c = 0;
    for (; c + LANES <= columns; c += LANES) {
        Lanes w[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) w[r] = load(panel + r * PANEL + c);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            Lanes a = load(x + m * stride + c);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) acc[m][r] = add_product(a, w[r], acc[m][r]);
        }
    }
    if (c < columns) {
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            Lanes a = load_part(x + m * stride + c, columns - c);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                acc[m][r] = add_product(a, load_part(panel + r * PANEL + c, columns - c), acc[m][r]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) lanes[m * GROUP + r] = acc[m][r];
}

// The same for M tokens and any number of rows up to GROUP.
template <int M>
inline void add_rows(const float *panel, int64_t rows, const float *x, int64_t stride, int64_t columns,
                     Lanes *lanes) {
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        add_tile<TILE_ROWS, M>(panel + r * PANEL, x, stride, columns, lanes + r);
    for (; r < rows; r++) add_tile<1, M>(panel + r * PANEL, x, stride, columns, lanes + r);
}

// `rows` (at most GROUP) outputs from `row` on, for `tokens` (at most TOKENS) tokens from `token` on.
template <class Format>
void rows_by_tokens(const Linear &job, int64_t row, int64_t rows, int64_t token, int64_t tokens) {
    alignas(64) float panel[GROUP * PANEL];
    Lanes lanes[TOKENS * GROUP];
    for (int64_t i = 0; i < tokens * GROUP; i++) lanes[i] = splat(0);
    const int64_t row_bytes = stored_bytes<Format>(job.inputs), stride = job.inputs;
    for (int64_t c = 0; c < job.inputs; c += PANEL) {
        const int64_t columns = job.inputs - c < PANEL ? job.inputs - c : PANEL;
        const uint8_t *raw = job.weight + row * row_bytes + stored_bytes<Format>(c);
        for (int64_t r = 0; r < rows; r++) decode_run<Format>(raw + r * row_bytes, panel + r * PANEL, columns);
        const float *x = job.x + token * stride + c;
        int64_t t = 0;
        for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS)
            add_rows<TILE_TOKENS>(panel, rows, x + t * stride, stride, columns, lanes + t * GROUP);
        for (; t < tokens; t++) add_rows<1>(panel, rows, x + t * stride, stride, columns, lanes + t * GROUP);
    }
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t r = 0; r < rows; r += ROWS)
            finish(job, lanes + t * GROUP + r, token + t, row + r, rows - r < ROWS ? rows - r : ROWS);
}

template <class Format>
void linear_run(const Linear &job, int64_t first, int64_t last) {
    for (int64_t t = 0; t < job.tokens; t += TOKENS) {
        const int64_t tokens = job.tokens - t < TOKENS ? job.tokens - t : TOKENS;
        int64_t row = first;
        if (tokens == 1 && job.inputs % Format::values == 0)
            for (; row + ROWS <= last; row += ROWS) four_rows<Format>(job, row, t);
        for (; row < last; row += GROUP)
            rows_by_tokens<Format>(job, row, last - row < GROUP ? last - row : GROUP, t, tokens);
    }
}

// Calls use(Format) for a storage; false where there is none.
template <class Use>
inline bool with_format(Storage storage, Use use) {
    switch (storage) {
        case F32: use(FormatF32()); return true;
        case F16: use(FormatF16()); return true;
        case BF16: use(FormatBF16()); return true;
        case Q4_0: use(FormatQ4_0()); return true;
        case Q4_1: use(FormatQ4_1()); return true;
        case Q5_0: use(FormatQ5_0()); return true;
        case Q5_1: use(FormatQ5_1()); return true;
        case Q8_0: use(FormatQ8_0()); return true;
        case Q2_K: use(FormatQ2_K()); return true;
        case Q3_K: use(FormatQ3_K()); return true;
        case Q4_K: use(FormatQ4_K()); return true;
        case Q5_K: use(FormatQ5_K()); return true;
        case Q6_K: use(FormatQ6_K()); return true;
    }
    return false;
}

void linear(const Linear &job, int64_t first, int64_t last) {
    with_format(job.storage, [&](auto format) { linear_run<decltype(format)>(job, first, last); });
}

void decode(Storage storage, const uint8_t *raw, float *out, int64_t count) {
    with_format(storage, [&](auto format) { decode_run<decltype(format)>(raw, out, count); });
}

}  // namespace

#define CHUMOKU_JOIN_(a, b) a##b
#define CHUMOKU_JOIN(a, b) CHUMOKU_JOIN_(a, b)
#define CHUMOKU_TEXT_(a) #a
#define CHUMOKU_TEXT(a) CHUMOKU_TEXT_(a)
extern const Core CHUMOKU_JOIN(core_, CHUMOKU_CORE) = {CHUMOKU_TEXT(CHUMOKU_CORE), linear, decode};

}  // namespace chumoku
