// PyTorch's random numbers on a CPU: the Mersenne twister MT19937 (Matsumoto & Nishimura, 1998) and
// the Bernoulli draws that dropout makes of them, number for number.
#pragma once

#include <stdint.h>

#include "native_pointwise.h"

namespace chumoku {
namespace {

struct Twister {
    static constexpr int SIZE = 624, SHIFT = 397;
    uint32_t state[SIZE], words[SIZE];  // words: the state, tempered
    int next;                           // the first word that is not yet used

    static CHUMOKU_INLINE uint32_t mixed(uint32_t a, uint32_t b, uint32_t far) {
        const uint32_t joined = (a & 0x80000000u) | (b & 0x7FFFFFFFu);
        return far ^ (joined >> 1) ^ (uint32_t(-int32_t(b & 1)) & 0x9908B0DFu);
    }
    void temper() {
        for (int i = 0; i < SIZE; i++) {
            uint32_t y = state[i];
            y ^= y >> 11;
            y ^= (y << 7) & 0x9D2C5680u;
            y ^= (y << 15) & 0xEFC60000u;
            words[i] = y ^ (y >> 18);
        }
    }
    void advance() {
        for (int i = 0; i < SIZE - SHIFT; i++) state[i] = mixed(state[i], state[i + 1], state[i + SHIFT]);
        for (int i = SIZE - SHIFT; i < SIZE - 1; i++)
            state[i] = mixed(state[i], state[i + 1], state[i + SHIFT - SIZE]);
        state[SIZE - 1] = mixed(state[SIZE - 1], state[0], state[SHIFT - 1]);
        temper();
        next = 0;
    }
    inline uint32_t word() {
        if (next == SIZE) advance();
        return words[next++];
    }
};

// noise[i] = value with probability keep, else 0: a draw is 53 bits of two words, kept below keep.
template <class Type>
void bernoulli(Twister &twister, double keep, float value, typename Type::Stored *noise, int64_t count) {
    constexpr double ONE = 9007199254740992.0;  // 2^53
    const double border = keep * ONE;           // exact, as a power of two scales
    const typename Type::Stored kept = Type::put(value), dropped = Type::put(0.0f);
    int64_t i = 0;
    while (i < count) {
        if (Twister::SIZE - twister.next < 2) {  // a draw may begin in one state and end in the next
            const uint64_t high = twister.word(), low = twister.word();
            noise[i++] = double((high & 0x1FFFFF) << 32 | low) < border ? kept : dropped;
            continue;
        }
        int64_t draws = (Twister::SIZE - twister.next) / 2;
        if (draws > count - i) draws = count - i;
        const uint32_t *words = twister.words + twister.next;
        for (int64_t n = 0; n < draws; n++) {
            const uint64_t high = words[2 * n], low = words[2 * n + 1];
            noise[i + n] = double(int64_t((high & 0x1FFFFF) << 32 | low)) < border ? kept : dropped;
        }
        i += draws;
        twister.next += int(2 * draws);
    }
}

}  // namespace
}  // namespace chumoku
