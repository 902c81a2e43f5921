// The block linear product for many tokens: outer products of tiles in registers.
//
// Lanes are tokens. The activations are packed once, value by value, with the tokens of a tile side
// by side; a chunk of rows is decoded into the cache, a stretch at a time, and each of its values
// multiplies a whole tile. So a decoded weight never reaches memory, and is used as it was stored,
// in rows. A sum adds its products in rising order of the value's index, whatever the number of
// tokens and threads and the width of the vectors.
#pragma once

#include "native_core.h"
#include "native_formats.h"

namespace chumoku {
namespace {

constexpr int OUTER_TOKENS = OUTER_LANES * LANES;  // tokens of a tile
constexpr int CHUNK = 48;                          // rows of a chunk: whole tiles for every build
constexpr int STRETCH = 512;                       // values of a row decoded at a time, at most: whole blocks
constexpr int APART = STRETCH + LANES;             // from row to row: not the same places of the cache
constexpr int MOST_TOKENS = 512;                   // tokens of one call of product_run
static_assert(CHUNK % OUTER_ROWS == 0 && OUTER_ROWS % 2 == 0 && MOST_TOKENS % OUTER_TOKENS == 0, "tiles");

// packed[tile][value][token of the tile]; tokens that a short tile lacks are zeros.
void pack(const Linear &job, float *packed, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        const int64_t start = tile * OUTER_TOKENS;
        float *out = packed + start * job.inputs;
        for (int64_t t = 0; t < OUTER_TOKENS; t += 4) {
            const float *x = job.x + (start + t) * job.inputs;
            const int64_t tokens = job.tokens - start - t;
            int64_t i = 0;
            if (tokens >= 4)
                for (; i + 4 <= job.inputs; i += 4)
                    turn_four(x + i, job.inputs, out + i * OUTER_TOKENS + t, OUTER_TOKENS);
            for (; i < job.inputs; i++)
                for (int64_t n = 0; n < 4; n++)
                    out[i * OUTER_TOKENS + t + n] = n < tokens ? x[n * job.inputs + i] : 0;
        }
    }
}

// sums[row][token] += weight[row][value] packed[value][token]; from zero where `fresh`.
inline void outer_tile(const float *weight, const float *packed, int64_t values, bool fresh, float *sums) {
    Lanes acc[OUTER_ROWS][OUTER_LANES];
#pragma GCC unroll 12
    for (int r = 0; r < OUTER_ROWS; r++)
#pragma GCC unroll 2
        for (int m = 0; m < OUTER_LANES; m++)
            acc[r][m] = fresh ? splat(0) : load(sums + r * OUTER_TOKENS + m * LANES);
    for (int64_t i = 0; i < values; i++) {
        Lanes x[OUTER_LANES];
#pragma GCC unroll 2
        for (int m = 0; m < OUTER_LANES; m++) x[m] = load(packed + i * OUTER_TOKENS + m * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < OUTER_ROWS; r++) {
            const Lanes w = splat(weight[r * APART + i]);
#pragma GCC unroll 2
            for (int m = 0; m < OUTER_LANES; m++) acc[r][m] = add_product(x[m], w, acc[r][m]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < OUTER_ROWS; r++)
#pragma GCC unroll 2
        for (int m = 0; m < OUTER_LANES; m++) store(sums + r * OUTER_TOKENS + m * LANES, acc[r][m]);
}

// sums[row][token] of one tile -> y[token][row], plus bias.
inline void finish_tile(const Linear &job, float *sums, int64_t row, int64_t rows, int64_t start) {
    if (job.bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t t = 0; t < OUTER_TOKENS; t++) sums[r * OUTER_TOKENS + t] += job.bias[row + r];
    for (int64_t t = 0; t < OUTER_TOKENS; t += 4) {
        const int64_t tokens = job.tokens - start - t;
        float *y = job.y + (start + t) * job.outputs + row;
        int64_t r = 0;
        if (tokens >= 4)
            for (; r + 4 <= rows; r += 4)
                turn_four(sums + r * OUTER_TOKENS + t, OUTER_TOKENS, y + r, job.outputs);
        for (; r < rows; r++)
            for (int64_t n = 0; n < 4 && n < tokens; n++)
                y[n * job.outputs + r] = sums[r * OUTER_TOKENS + t + n];
    }
}

// Chunks first..last-1 of the outputs, for all tokens (at most MOST_TOKENS).
template <class Format>
void product_run(const Linear &job, const float *packed, int64_t first, int64_t last) {
    alignas(64) float weight[CHUNK * APART];
    alignas(64) float sums[CHUNK * MOST_TOKENS];
    const int64_t row_bytes = stored_bytes<Format>(job.inputs);
    // Stretches of about one length: a short last one would be mostly loading and storing of sums.
    const int64_t parts = (job.inputs + STRETCH - 1) / STRETCH, even = (job.inputs + parts - 1) / parts;
    const int64_t stretch = (even + Format::values - 1) / Format::values * Format::values;
    for (int64_t chunk = first; chunk < last; chunk++) {
        const int64_t row = chunk * CHUNK;
        const int64_t rows = job.outputs - row < CHUNK ? job.outputs - row : CHUNK;
        // Rows that the last tile lacks are computed too, and not kept.
        if (rows < CHUNK) memset(weight + rows * APART, 0, (CHUNK - rows) * APART * sizeof(float));
        for (int64_t c = 0; c < job.inputs; c += stretch) {
            const int64_t values = job.inputs - c < stretch ? job.inputs - c : stretch;
            const uint8_t *raw = job.weight + row * row_bytes + stored_bytes<Format>(c);
            for (int64_t r = 0; r < rows; r++)
                decode_run<Format>(raw + r * row_bytes, weight + r * APART, values);
            for (int64_t t = 0; t < job.tokens; t += OUTER_TOKENS) {
                const float *x = packed + t * job.inputs + c * OUTER_TOKENS;
                for (int64_t r = 0; r < rows; r += OUTER_ROWS)
                    outer_tile(weight + r * APART, x, values, c == 0, sums + t * CHUNK + r * OUTER_TOKENS);
            }
        }
        for (int64_t t = 0; t < job.tokens; t += OUTER_TOKENS)
            finish_tile(job, sums + t * CHUNK, row, rows, t);
    }
}

}  // namespace
}  // namespace chumoku
