/* What a host does to many numbers between the passes of a training step.  host/native.py says what each function computes
   and has the same in NumPy; all bits are equal.  Words are little-endian. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The nearest integer, halves to even, of |x| < 2^51. */
static inline double nearest(double x)
{
    const double shift = 6755399441055744.0; /* 1.5 * 2^52 */
    return (x + shift) - shift;
}

/* Greatest magnitude as the bits of a float; infinity and NaN are greater than all numbers. */
static int32_t greatest(const float *values, int64_t count, int32_t most)
{
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

void round_weights(const float *weights, int64_t outer, int64_t channels, int64_t inner, double top, double *scale,
                   int16_t *codes, int64_t *magnitudes, int64_t *totals)
{
    for (int64_t c = 0; c < channels; c++) {
        int32_t bits = 0;
        for (int64_t o = 0; o < outer; o++) bits = greatest(weights + (o * channels + c) * inner, inner, bits);
        if (bits >= 0x7f800000) {
            scale[c] = NAN;
            continue;
        }
        float most;
        memcpy(&most, &bits, sizeof most);
        const double unit = (most > 0 ? (double)most : 1.0) / top;
        int64_t magnitude = 0, total = 0;
        for (int64_t o = 0; o < outer; o++) {
            const float *from = weights + (o * channels + c) * inner;
            int16_t *to = codes + (o * channels + c) * inner;
            int32_t up = 0, sum = 0; /* of at most 2^16 codes of 15 bits */
            for (int64_t i = 0; i < inner; i++) {
                const int32_t code = (int32_t)nearest((double)from[i] / unit);
                to[i] = (int16_t)code;
                up += code < 0 ? -code : code;
                sum += code;
            }
            magnitude += up;
            total += sum;
        }
        scale[c] = unit;
        magnitudes[c] = magnitude;
        totals[c] = total;
    }
}

void pack_weights(const int16_t *codes, const int32_t *index, int64_t pairs, int64_t size, int64_t words, int64_t bits,
                  uint64_t *out)
{
    const uint64_t each = 0x0101010101010101u, gather = 0x0102040810204080u; /* bit 8*k of eight to bit 56 + k */
    memset(out, 0, (size_t)(pairs * bits * words * 8));
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int32_t *at = index + pair * size;
        uint8_t *to = (uint8_t *)(out + pair * bits * words);
        for (int64_t i = 0; i < size; i += 8) {
            uint64_t halves[2] = {0, 0};
            const int64_t count = size - i < 8 ? size - i : 8;
            for (int64_t k = 0; k < count; k++) {
                const uint16_t code = at[i + k] ? (uint16_t)codes[at[i + k] - 1] : 0;
                halves[0] |= (uint64_t)(code & 255) << 8 * k;
                halves[1] |= (uint64_t)(code >> 8) << 8 * k;
            }
            for (int64_t b = 0; b < bits; b++)
                to[b * words * 8 + i / 8] = (uint8_t)(((halves[b / 8] >> b % 8 & each) * gather) >> 56);
        }
    }
}

#define FOR_PIXELS(type, name)                                                                                            \
    void move_##name(const type *from, const int32_t *index, int64_t tiles, int64_t planes, int64_t lanes, type *to)      \
    {                                                                                                                     \
        for (int64_t t = 0; t < tiles; t++)                                                                               \
            for (int64_t p = 0; p < planes; p++)                                                                          \
                for (int64_t l = 0; l < lanes; l++) {                                                                     \
                    const int32_t at = index[t * lanes + l];                                                              \
                    to[(t * planes + p) * lanes + l] = at < 0 ? 0 : from[at + p * lanes];                                 \
                }                                                                                                         \
    }                                                                                                                     \
                                                                                                                          \
    void pack_##name(const int32_t *codes, const int64_t *shape, int64_t side, int64_t lanes, int64_t bits, type *to)     \
    {                                                                                                                     \
        const int64_t n = shape[0], c = shape[1], h = shape[2], w = shape[3], per = 8 * sizeof(type);                     \
        const int64_t groups = (c + per - 1) / per, images = (n + side - 1) / side;                                       \
        memset(to, 0, (size_t)(images * h * groups * bits * lanes) * sizeof(type));                                       \
        for (int64_t i = 0; i < n; i++)                                                                                   \
            for (int64_t y = 0; y < h; y++)                                                                               \
                for (int64_t k = 0; k < c; k++) {                                                                         \
                    const int32_t *from = codes + ((i * c + k) * h + y) * w;                                              \
                    type *tile = to + ((i / side * h + y) * groups + k / per) * bits * lanes + i % side * w;              \
                    for (int64_t b = 0; b < bits; b++)                                                                    \
                        for (int64_t x = 0; x < w; x++) tile[b * lanes + x] |= (type)((from[x] >> b & 1) << k % per);     \
                }                                                                                                         \
    }                                                                                                                     \
                                                                                                                          \
    void pool_##name(const type *from, const int64_t *shape, int64_t side, int64_t lanes, int64_t bits, int32_t *sums)    \
    {                                                                                                                     \
        const int64_t n = shape[0], groups = shape[1], h = shape[2], w = shape[3], per = 8 * sizeof(type);                \
        for (int64_t i = 0; i < n; i++)                                                                                   \
            for (int64_t g = 0; g < groups; g++) {                                                                        \
                int32_t *to = sums + (i * groups + g) * per;                                                              \
                for (int64_t y = 0; y < h; y++) {                                                                         \
                    const type *tile = from + ((i / side * h + y) * groups + g) * bits * lanes + i % side * w;            \
                    for (int64_t b = 0; b < bits; b++)                                                                    \
                        for (int64_t x = 0; x < w; x++)                                                                   \
                            for (int64_t k = 0; k < per; k++) to[k] += (int32_t)(tile[b * lanes + x] >> k & 1) << b;      \
                }                                                                                                         \
            }                                                                                                             \
    }

FOR_PIXELS(uint8_t, 8)
FOR_PIXELS(uint16_t, 16)
FOR_PIXELS(uint32_t, 32)
