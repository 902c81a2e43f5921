// The block linear product for many tokens: outer products of tiles in registers.
//
// Lanes are outputs. A chunk of rows is decoded into the cache, a stretch at a time, and turned so
// that the rows' values of one index lie side by side; each value of a token multiplies them all.
// So a decoded weight never reaches memory, tokens are read where they lie, and results are written
// where they belong. A sum adds its products in rising order of the value's index, whatever the
// number of tokens and threads and the width of the vectors.
#pragma once

#include "native_core.h"
#include "native_formats.h"

namespace chumoku {
namespace {

constexpr int CHUNK = 48;                  // rows of a chunk
constexpr int STRETCH = 512;               // values of a row decoded at a time, at most: whole blocks
constexpr int APART = STRETCH + LANES;     // from row to row before turning: not the same places of the cache
constexpr int WIDE = OUTER_LANES * LANES;  // rows of a tile
static_assert(CHUNK % WIDE == 0 && CHUNK % 4 == 0, "a chunk is whole tiles");

// The values start..start+count-1 of `rows` rows as panel[value][row]; rows up to CHUNK are zeros.
template <class Format>
inline void decode_chunk(const Linear &job, int64_t row, int64_t rows, int64_t start, int64_t count, float *panel) {
    alignas(64) float decoded[CHUNK * APART];
    const int64_t row_bytes = stored_bytes<Format>(job.inputs);
    const uint8_t *raw = job.weight + row * row_bytes + stored_bytes<Format>(start);
    for (int64_t r = 0; r < rows; r++) decode_run<Format>(raw + r * row_bytes, decoded + r * APART, count);
    for (int64_t r = rows; r < CHUNK; r++) memset(decoded + r * APART, 0, count * sizeof(float));
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int r = 0; r < CHUNK; r += 4) turn_four(decoded + r * APART + i, APART, panel + i * CHUNK + r, CHUNK);
    for (; i < count; i++)
        for (int r = 0; r < CHUNK; r++) panel[i * CHUNK + r] = decoded[r * APART + i];
}

// One stretch of one chunk: y[token][row] += x[token][value] panel[value][row]; from zero where `fresh`.
struct Stretch {
    const float *x, *panel;
    float *y;
    int64_t x_stride, y_stride, values;
    bool fresh;
};

template <int TOKENS>
inline void outer_tile(const Stretch &part, int64_t token, int row) {
    const float *x = part.x + token * part.x_stride, *panel = part.panel + row;
    float *y = part.y + token * part.y_stride + row;
    Lanes acc[TOKENS][OUTER_LANES];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 3
        for (int m = 0; m < OUTER_LANES; m++)
            acc[t][m] = part.fresh ? splat(0) : load(y + t * part.y_stride + m * LANES);
    for (int64_t i = 0; i < part.values; i++) {
        Lanes w[OUTER_LANES];
#pragma GCC unroll 3
        for (int m = 0; m < OUTER_LANES; m++) w[m] = load(panel + i * CHUNK + m * LANES);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
            const Lanes a = splat(x[t * part.x_stride + i]);
#pragma GCC unroll 3
            for (int m = 0; m < OUTER_LANES; m++) acc[t][m] = add_product(w[m], a, acc[t][m]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 3
        for (int m = 0; m < OUTER_LANES; m++) store(y + t * part.y_stride + m * LANES, acc[t][m]);
}

// Tiles of TOKENS tokens from `token` on, as long as they are whole; the first token left over.
template <int TOKENS>
inline int64_t outer_tiles(const Stretch &part, int64_t token, int64_t tokens) {
    for (; token + TOKENS <= tokens; token += TOKENS)
        for (int row = 0; row < CHUNK; row += WIDE) outer_tile<TOKENS>(part, token, row);
    return token;
}

// Chunks first..last-1 of the outputs, for all tokens (at most MOST_TOKENS).
template <class Format>
void product_run(const Linear &job, int64_t first, int64_t last) {
    alignas(64) float panel[CHUNK * STRETCH];
    alignas(64) float beside[CHUNK * MOST_TOKENS];  // the results of a short chunk
    // Stretches of about one length: a short last one would be mostly loading and storing of sums.
    const int64_t parts = (job.inputs + STRETCH - 1) / STRETCH, even = (job.inputs + parts - 1) / parts;
    const int64_t stretch = (even + Format::values - 1) / Format::values * Format::values;
    for (int64_t chunk = first; chunk < last; chunk++) {
        const int64_t row = chunk * CHUNK;
        const int64_t rows = job.outputs - row < CHUNK ? job.outputs - row : CHUNK;
        float *y = job.y + row;
        for (int64_t c = 0; c < job.inputs; c += stretch) {
            const int64_t values = job.inputs - c < stretch ? job.inputs - c : stretch;
            decode_chunk<Format>(job, row, rows, c, values, panel);
            Stretch part{job.x + c, panel, y, job.inputs, job.outputs, values, c == 0};
            if (rows < CHUNK) part.y = beside, part.y_stride = CHUNK;
            int64_t token = outer_tiles<OUTER_TOKENS>(part, 0, job.tokens);
            token = outer_tiles<OUTER_TOKENS / 2>(part, token, job.tokens);
            outer_tiles<1>(part, token, job.tokens);
        }
        for (int64_t t = 0; t < job.tokens; t++, y += job.outputs) {
            if (rows < CHUNK) memcpy(y, beside + t * CHUNK, rows * sizeof(float));
            if (job.bias)
                for (int64_t r = 0; r < rows; r++) y[r] += job.bias[row + r];
        }
    }
}

}  // namespace
}  // namespace chumoku
