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

/* -- numbers of a step ------------------------------------------------------------------------------------------------

   Operations of host/step/recorded.py and steps of host/replay/schedule_builder.py, a row of ROW numbers for each:
   code, count, then what each case says.  Operands are places in v with a stride of 0 or 1. */

enum {
    ADD, SUBTRACT, MULTIPLY, DIVIDE, MAXIMUM, MINIMUM, GREATER, LESS, WHERE, ABSOLUTE, NEGATIVE, SQRT, FLOOR, RINT, ISFINITE,
    LDEXP, EXPONENT, LEAST, GREATEST, REQUIRE, MOMENTS, ENTRIES, PATCH, GRADIENT, ROUND, PACK
};
enum { ROW = 12, FIELDS = 6 };

#define EACH(expression)                                                                                                  \
    for (int64_t k = 0; k < n; k++) {                                                                                     \
        const double x = a[k * sa], y = b[k * sb];                                                                        \
        (void)y;                                                                                                          \
        to[k] = expression;                                                                                               \
    }                                                                                                                     \
    break

/* NaN wins, as in NumPy. */
static inline double maximum(double x, double y) { return x > y || x != x ? x : y; }
static inline double minimum(double x, double y) { return x < y || x != x ? x : y; }

/* Moments of tiles as those of channels: sums, sums of products, least and greatest. */
static void add_moments(const int64_t *r, const int64_t *table, double *to)
{
    const int64_t n = r[1], *order = (const int64_t *)r[4], *starts = (const int64_t *)r[5];
    const uint8_t *zeros = (const uint8_t *)r[7];
    for (int64_t c = 0; c < n; c++) {
        const int64_t stop = c + 1 < n ? starts[c + 1] : r[6];
        int64_t total = 0, products = 0, least = INT32_MAX, most = INT32_MIN;
        for (int64_t i = starts[c]; i < stop; i++) {
            const int64_t *row = table + order[i] * MOMENT_WORDS;
            const int64_t low = (int32_t)row[2], high = row[2] >> 32;
            total += row[0];
            products += row[1];
            least = low < least ? low : least;
            most = high > most ? high : most;
        }
        if (zeros && zeros[c]) {
            least = least > 0 ? 0 : least;
            most = most < 0 ? 0 : most;
        }
        to[c] = (double)total;
        to[n + c] = (double)products;
        to[2 * n + c] = (double)least;
        to[3 * n + c] = (double)most;
    }
}

/* Entries of channels and of none, and which of them goes where; 1 if a number does not fit its field. */
static int write_entries(const int64_t *r, const double *v)
{
    static const int bits[FIELDS] = {MULTIPLIER_BITS, MULTIPLIER_BITS, MULTIPLIER_BITS, MULTIPLIER_BITS, OFFSET_BITS, VALUE_OFFSET_BITS};
    const int64_t n = r[1], count = r[2], *index = (const int64_t *)r[3], *at = (const int64_t *)r[5];
    uint64_t *out = (uint64_t *)r[4], *made = (uint64_t *)r[6];
    for (int64_t c = 0; c < n; c++) {
        uint64_t field[FIELDS];
        for (int f = 0; f < FIELDS; f++) {
            const double x = v[at[2 * f] + c * at[2 * f + 1]], limit = (double)((int64_t)1 << (bits[f] - 1));
            if (!(x >= -limit && x < limit)) return 1;
            field[f] = (uint64_t)(int64_t)x & (((uint64_t)1 << bits[f]) - 1);
        }
        made[4 * c] = field[0] | field[1] << MULTIPLIER_BITS | field[2] << 2 * MULTIPLIER_BITS;
        made[4 * c + 1] = field[4];
        made[4 * c + 2] = field[5] | field[3] << VALUE_OFFSET_BITS;
        made[4 * c + 3] = 0;
    }
    int64_t changed = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t *from = made + 4 * (index[i] < 0 ? n : index[i]);
        changed |= memcmp(out + 4 * i, from, 32);
        memcpy(out + 4 * i, from, 32);
    }
    *(int64_t *)r[7] = changed ? 4 * count : 0;
    return 0;
}

/* Headers that had zeros in their fields, with other values, and the checksum. */
static void patch_headers(const int64_t *r, const double *v)
{
    const int64_t count = r[2], *convs = (const int64_t *)r[3], *at = (const int64_t *)r[6];
    const int64_t *place = (const int64_t *)r[7]; /* word and bit of each field, and of the checksum */
    const uint64_t *base = (const uint64_t *)r[4];
    uint64_t *rows = (uint64_t *)r[5], mask[RECORD_SIZE] = {0};
    uint8_t used[RECORD_SIZE] = {0};
    int64_t *last = (int64_t *)r[8], same = 1, words = 0;
    for (int f = 0; f < FIELDS; f++) {
        const int64_t value = at[f] < 0 ? 0 : (int64_t)v[at[f]], word = place[2 * f], bit = place[2 * f + 1];
        same &= value == last[f];
        last[f] = value;
        mask[word] ^= (uint64_t)value << bit;
        mask[place[2 * FIELDS]] ^= (uint64_t)value << bit % 32 << place[2 * FIELDS + 1];
        used[word] = used[place[2 * FIELDS]] = 1;
    }
    *(int64_t *)r[9] = 0;
    if (same) return;
    for (int w = 0; w < RECORD_SIZE; w++) {
        words += used[w];
        for (int64_t i = 0; used[w] && i < count; i++)
            rows[convs[i] * RECORD_SIZE + w] = base[convs[i] * RECORD_SIZE + w] ^ mask[w];
    }
    *(int64_t *)r[9] = words * count;
}

int64_t compute(const int64_t *rows, int64_t count, double *v, void *const *pointers)
{
    for (int64_t i = 0; i < count; i++) {
        const int64_t *r = rows + i * ROW, n = r[1], sa = r[4], sb = r[6], sc = r[8];
        double *to = v + r[2];
        const double *a = v + r[3], *b = v + r[5], *c = v + r[7];
        switch (r[0]) {
        case ADD: EACH(x + y);
        case SUBTRACT: EACH(x - y);
        case MULTIPLY: EACH(x * y);
        case DIVIDE: EACH(x / y);
        case MAXIMUM: EACH(maximum(x, y));
        case MINIMUM: EACH(minimum(x, y));
        case GREATER: EACH(x > y);
        case LESS: EACH(x < y);
        case WHERE: EACH(x != 0 ? y : c[k * sc]);
        case ABSOLUTE: EACH(fabs(x));
        case NEGATIVE: EACH(-x);
        case SQRT: EACH(sqrt(x));
        case FLOOR: EACH(floor(x));
        case RINT: EACH(rint(x));
        case ISFINITE: EACH(isfinite(x) != 0);
        case LDEXP: {
            const double power = ldexp(1.0, (int)*b);
            EACH(x * power);
        }
        case EXPONENT:
            for (int64_t k = 0; k < n; k++) {
                int found;
                frexp(a[k * sa], &found);
                to[k] = found;
            }
            break;
        case LEAST:
            *to = a[0];
            for (int64_t k = 1; k < n; k++) *to = minimum(*to, a[k]);
            break;
        case GREATEST:
            *to = a[0];
            for (int64_t k = 1; k < n; k++) *to = maximum(*to, a[k]);
            break;
        case REQUIRE:
            if (!(*a != 0)) return i;
            break;
        case MOMENTS: add_moments(r, (const int64_t *)r[3], to); break;
        case ENTRIES:
            if (write_entries(r, v)) return i;
            break;
        case PATCH: patch_headers(r, v); break;
        case GRADIENT: { /* sums, wide or not, by their index, times v[r[5]], to the floats from r[2] on */
            float *out = (float *)pointers[0] + r[2];
            const int64_t *index = (const int64_t *)r[4];
            const double scale = v[r[5]];
            if (r[6])
                for (int64_t k = 0; k < n; k++) out[k] = (float)((double)((const int64_t *)r[3])[index[k]] * scale);
            else
                for (int64_t k = 0; k < n; k++) out[k] = (float)((double)((const int32_t *)r[3])[index[k]] * scale);
            break;
        }
        case ROUND: { /* weights pointers[r[3]] of r[4] by n by r[5] to codes; scale, magnitudes and totals to v */
            int64_t *sums = (int64_t *)r[8];
            round_weights(pointers[r[3]], r[4], n, r[5], (double)r[6], to, (int16_t *)r[7], sums, sums + n);
            for (int64_t k = 0; k < n; k++) {
                if (!isfinite(to[k])) return i;
                to[n + k] = (double)sums[k];
                to[2 * n + k] = (double)sums[n + k];
            }
            break;
        }
        case PACK: pack_weights((const int16_t *)r[2], (const int32_t *)r[3], n, r[4], r[5], r[6], (uint64_t *)r[7]); break;
        }
    }
    return -1;
}
