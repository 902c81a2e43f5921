// What the bytes of each block format mean. The definition is kernels/blocks.py (GGUF v3 layouts).
#pragma once

#include "native_lanes.h"

namespace chumoku {
namespace {

constexpr int PART = 32;  // every format is decoded in parts of 32 values

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

// ---- runs -------------------------------------------------------------------------------------

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

template <class Format>
inline int64_t stored_bytes(int64_t count) {
    if (Format::bytes % Format::values == 0) return count * (Format::bytes / Format::values);
    return count / Format::values * Format::bytes;
}

}  // namespace
}  // namespace chumoku
