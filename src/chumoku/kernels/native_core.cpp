// Decoding of blocks and the block linear product, compiled once for each set of instructions
// (CHUMOKU_CORE names the build).
//
// The order of every sum is fixed: value i of a row goes to lane i % 16, a lane adds in rising
// order of i, and the 16 lanes are added as a tree (i with i+8, then i+4, i+2, i+1). So a result
// depends neither on the number of tokens, nor on other rows, nor on threads, nor, where there is
// a fused multiply-add, on the width of the vectors.

#include "native_core.h"

#include "native_formats.h"
#include "native_pointwise.h"
#include "native_product.h"
#include "native_random.h"

namespace chumoku {
namespace {

constexpr int ROWS = 4;     // rows computed together for one token
constexpr int AHEAD = 8;    // rows between what is computed and what is asked from memory
constexpr int GROUP = 16;   // rows decoded together for many tokens
constexpr int PANEL = 256;  // values of a row decoded at a time: the largest block
constexpr int TOKENS = 32;  // tokens that share one decoding of a panel

// ---- the product ------------------------------------------------------------------------------

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

// Four rows are four short streams, which a processor does not foresee by itself.
template <class Format>
inline void fetch_ahead(const uint8_t *raw, int64_t row_bytes) {
#if defined(__GNUC__)
    for (int r = 0; r < ROWS; r++)
        for (int b = 0; b < Format::bytes; b += 64) __builtin_prefetch(raw + (r + AHEAD) * row_bytes + b);
#else
    (void)raw, (void)row_bytes;
#endif
}

// One token, four whole rows of whole blocks: decoded values go from registers into the sums.
template <class Format>
void four_rows(const Linear &job, int64_t row, int64_t token) {
    const float *x = job.x + token * job.inputs;
    const int64_t row_bytes = stored_bytes<Format>(job.inputs);
    const uint8_t *raw = job.weight + row * row_bytes;
    Lanes acc[ROWS];
    for (int r = 0; r < ROWS; r++) acc[r] = splat(0);
    for (int64_t c = 0; c < job.inputs; c += Format::values, raw += Format::bytes) {
        fetch_ahead<Format>(raw, row_bytes);
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

void product(const Linear &job, int64_t first, int64_t last) {
    with_format(job.storage, [&](auto format) { product_run<decltype(format)>(job, first, last); });
}

void decode(Storage storage, const uint8_t *raw, float *out, int64_t count) {
    with_format(storage, [&](auto format) { decode_run<decltype(format)>(raw, out, count); });
}

// Calls use(Type) for a type of single values: float32 or bfloat16.
template <class Use>
inline void with_type(Storage type, Use use) {
    if (type == BF16) use(Brain());
    else use(Single());
}

void silu_product_of(Storage type, const void *gate, const void *up, void *y, int64_t first, int64_t last) {
    with_type(type, [&](auto kind) {
        using Type = decltype(kind);
        using Stored = typename Type::Stored;
        silu_product<Type>((const Stored *)gate, (const Stored *)up, (Stored *)y, first, last);
    });
}

void rms_norm_of(Storage type, const void *x, const void *weight, void *y, int64_t width, float eps, int64_t first,
                 int64_t last) {
    with_type(type, [&](auto kind) {
        using Type = decltype(kind);
        using Stored = typename Type::Stored;
        rms_norm<Type>((const Stored *)x, (const Stored *)weight, (Stored *)y, width, eps, first, last);
    });
}

void bernoulli_of(Storage type, uint32_t *state, int *next, double keep, float value, void *noise, int64_t count) {
    Twister twister;
    memcpy(twister.state, state, sizeof twister.state);
    twister.next = *next;
    twister.temper();
    with_type(type, [&](auto kind) {
        using Type = decltype(kind);
        bernoulli<Type>(twister, keep, value, (typename Type::Stored *)noise, count);
    });
    memcpy(state, twister.state, sizeof twister.state);
    *next = twister.next;
}

void gelu_of(bool exact, const float *x, float *y, float *slope, int64_t first, int64_t last) {
    auto gelu = exact ? (slope ? gelu_exact<true> : gelu_exact<false>) : (slope ? gelu_tanh<true> : gelu_tanh<false>);
    gelu(x, y, slope, first, last);
}

}  // namespace

#define CHUMOKU_JOIN_(a, b) a##b
#define CHUMOKU_JOIN(a, b) CHUMOKU_JOIN_(a, b)
#define CHUMOKU_TEXT_(a) #a
#define CHUMOKU_TEXT(a) CHUMOKU_TEXT_(a)
extern const Core CHUMOKU_JOIN(core_, CHUMOKU_CORE) = {
    CHUMOKU_TEXT(CHUMOKU_CORE), linear, CHUNK, product, decode, silu_product_of, rms_norm_of, bernoulli_of, gelu_of};

}  // namespace chumoku
