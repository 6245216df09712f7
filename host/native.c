/* What a host does to many numbers between the passes of a training step.  host/native.py says what each function computes
   and has the same in NumPy; all bits are equal.  Words are little-endian. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The nearest integer, halves to even, of |x| < 2^51. */
static inline double nearest(double x)
{
    const double shift = 6755399441055744.0; /* 1.5 * 2^52 */
    return (x + shift) - shift;
}

/* Codes of a row of weights, whose units and rounded inverses lie beside them with a stride of 0 or 1: in single precision,
   and anew where that may be on the wrong side of a half. */
static void round_row(const float *from, const double *unit, const float *inverse, int64_t stride, int64_t n, float margin,
                      int16_t *to)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23 */
    int32_t close = 0;
    for (int64_t i = 0; i < n; i++) {
        const float exact = from[i] * inverse[i * stride], code = (exact + shift) - shift;
        close |= !(fabsf(exact - code) < 0.5f - margin);
        to[i] = (int16_t)(int32_t)code;
    }
    for (int64_t i = 0; close && i < n; i++) to[i] = (int16_t)(int32_t)nearest((double)from[i] / unit[i * stride]);
}

/* The bits of the greatest magnitude of float32; infinity and NaN are greater than all numbers. */
static int32_t greatest(const float *values, int64_t count)
{
    int32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

static double unit_of(int32_t bits, double top)
{
    float most;
    memcpy(&most, &bits, sizeof most);
    return bits >= 0x7f800000 ? NAN : (most > 0 ? (double)most : 1.0) / top;
}

/* Channels come first: each is a row. */
static void round_rows(const float *weights, int64_t channels, int64_t inner, double top, double *scale, int16_t *codes,
                       int64_t *magnitudes, int64_t *totals)
{
    for (int64_t c = 0; c < channels; c++) {
        const float *from = weights + c * inner;
        int16_t *to = codes + c * inner;
        const double unit = scale[c] = unit_of(greatest(from, inner), top);
        const float inverse = (float)(1.0 / unit);
        if (unit != unit) continue;
        round_row(from, &unit, &inverse, 0, inner, (float)(top + 1) * 0x1p-22f, to);
        int32_t up = 0, sum = 0; /* of at most 2^16 codes of 15 bits */
        for (int64_t i = 0; i < inner; i++) {
            up += to[i] < 0 ? -to[i] : to[i];
            sum += to[i];
        }
        magnitudes[c] = up;
        totals[c] = sum;
    }
}

void round_weights(const float *weights, int64_t outer, int64_t channels, int64_t inner, double top, double *scale,
                   int16_t *codes, int64_t *magnitudes, int64_t *totals)
{
    const int64_t length = channels * inner; /* of a row: all channels */
    void *scratch = outer > 1 ? malloc((size_t)length * (sizeof(double) + 3 * sizeof(int32_t))) : 0;
    if (!scratch) {
        for (int64_t c = 0; c < channels; c++) magnitudes[c] = totals[c] = 0;
        for (int64_t o = 0; o < outer; o++) /* one row, or too little memory: which no workstation or board has */
            round_rows(weights + o * length, channels, inner, top, scale, codes + o * length, magnitudes, totals);
        return;
    }
    double *unit = scratch;
    float *inverse = (float *)(unit + length);
    int32_t *up = (int32_t *)(inverse + length), *sum = up + length;
    memset(up, 0, (size_t)length * sizeof *up);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < length; i++) {
            int32_t bits;
            memcpy(&bits, weights + o * length + i, sizeof bits);
            bits &= 0x7fffffff;
            up[i] = bits > up[i] ? bits : up[i];
        }
    for (int64_t c = 0; c < channels; c++) {
        int32_t most = 0;
        for (int64_t i = 0; i < inner; i++) most = up[c * inner + i] > most ? up[c * inner + i] : most;
        scale[c] = unit_of(most, top);
        for (int64_t i = 0; i < inner; i++) {
            unit[c * inner + i] = scale[c];
            inverse[c * inner + i] = (float)(1.0 / scale[c]);
        }
    }
    memset(up, 0, (size_t)length * 2 * sizeof *up);
    for (int64_t o = 0; o < outer; o++) { /* at most 2^16 rows of codes of 15 bits */
        int16_t *to = codes + o * length;
        round_row(weights + o * length, unit, inverse, 1, length, (float)(top + 1) * 0x1p-22f, to);
        for (int64_t i = 0; i < length; i++) {
            up[i] += to[i] < 0 ? -to[i] : to[i];
            sum[i] += to[i];
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        magnitudes[c] = totals[c] = 0;
        for (int64_t i = 0; i < inner; i++) {
            magnitudes[c] += up[c * inner + i];
            totals[c] += sum[c * inner + i];
        }
    }
    free(scratch);
}

/* Planes of weight words, of codes by their index, which 0 means where index is 0: their low bytes, and the high ones
   where they have more than 8 bits. */
#define FOR_INDEX(type, name)                                                                                             \
    void pack_weights_##name(const uint8_t *low, const uint8_t *high, const type *index, int64_t pairs, int64_t size,     \
                             int64_t words, int64_t bits, uint64_t *out)                                                  \
    {                                                                                                                     \
        const uint64_t each = 0x0101010101010101u, gather = 0x0102040810204080u; /* bit 8*k of eight to bit 56 + k */     \
        memset(out, 0, (size_t)(pairs * bits * words * 8));                                                               \
        for (int64_t pair = 0; pair < pairs; pair++)                                                                      \
            for (int64_t first = 0; first < bits; first += 8) {                                                           \
                const uint8_t *codes = first ? high : low;                                                                \
                const type *at = index + pair * size;                                                                     \
                const int64_t planes = bits - first < 8 ? bits - first : 8;                                               \
                uint8_t *to = (uint8_t *)(out + (pair * bits + first) * words);                                           \
                for (int64_t i = 0; i < size; i += 8) {                                                                   \
                    uint64_t eight = 0;                                                                                   \
                    if (i + 8 <= size)                                                                                    \
                        for (int64_t k = 0; k < 8; k++) eight |= (uint64_t)codes[at[i + k]] << 8 * k;                     \
                    else                                                                                                  \
                        for (int64_t k = 0; i + k < size; k++) eight |= (uint64_t)codes[at[i + k]] << 8 * k;              \
                    for (int64_t b = 0; b < planes; b++)                                                                  \
                        to[b * words * 8 + i / 8] = (uint8_t)(((eight >> b & each) * gather) >> 56);                      \
                }                                                                                                         \
            }                                                                                                             \
    }                                                                                                                     \
                                                                                                                          \
    static void scale_sums_##name(const void *sums, int64_t wide, const type *index, int64_t n, double scale, float *out) \
    {                                                                                                                     \
        if (wide)                                                                                                         \
            for (int64_t k = 0; k < n; k++) out[k] = (float)((double)((const int64_t *)sums)[index[k]] * scale);          \
        else                                                                                                              \
            for (int64_t k = 0; k < n; k++) out[k] = (float)((double)((const int32_t *)sums)[index[k]] * scale);          \
    }

FOR_INDEX(uint16_t, 16)
FOR_INDEX(int32_t, 32)

/* Codes of images, to nearest even, of which the greatest magnitude is known. */
void round_images(const float *images, int64_t count, double scale, double most, int32_t *codes)
{
    for (int64_t i = 0; i < count; i++) {
        const double code = nearest((double)images[i] / scale);
        codes[i] = (int32_t)(code > most ? most : code < -most ? -most : code);
    }
}

float magnitude(const float *values, int64_t count)
{
    const int32_t bits = greatest(values, count);
    float most;
    memcpy(&most, &bits, sizeof most);
    return most;
}

/* A step of gradient descent for every row of a table: weights, gradients, velocities, new weights, whether there were no
   velocities before, and how many; every operation rounded. */
void descend(const int64_t *table, int64_t rows, float lr, float momentum, float decay, int64_t nesterov)
{
    for (const int64_t *r = table; r < table + 6 * rows; r += 6) {
        const float *weight = (const float *)r[0], *by = (const float *)r[1];
        float *restrict velocity = (float *)r[2], *restrict new_weight = (float *)r[3];
        for (int64_t i = 0; i < r[5]; i++) {
            float gradient = by[i];
            if (decay != 0) gradient = gradient + decay * weight[i];
            if (momentum != 0) {
                const float moved = r[4] ? gradient : momentum * velocity[i] + gradient;
                velocity[i] = moved;
                gradient = nesterov ? gradient + momentum * moved : moved;
            }
            new_weight[i] = weight[i] - lr * gradient;
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
                        for (int64_t x = 0; x < w; x++) tile[b * lanes + x] |= (type)(from[x] >> b & 1) << k % per;       \
                }                                                                                                         \
    }                                                                                                                     \
                                                                                                                          \
    void spread_##name(const int32_t *codes, const int64_t *shape, int64_t side, int64_t lanes, int64_t bits, type *to)   \
    { /* as pack, of codes (N, C) that all pixels of an image have */                                                     \
        const int64_t n = shape[0], c = shape[1], h = shape[2], w = shape[3], per = 8 * sizeof(type);                     \
        const int64_t groups = (c + per - 1) / per, images = (n + side - 1) / side;                                       \
        memset(to, 0, (size_t)(images * h * groups * bits * lanes) * sizeof(type));                                       \
        for (int64_t i = 0; i < n; i++)                                                                                   \
            for (int64_t g = 0; g < groups; g++)                                                                          \
                for (int64_t b = 0; b < bits; b++) {                                                                      \
                    type pixel = 0;                                                                                       \
                    for (int64_t k = 0; k < per && g * per + k < c; k++)                                                  \
                        pixel |= (type)((type)(codes[i * c + g * per + k] >> b & 1) << k);                                \
                    for (int64_t y = 0; y < h; y++)                                                                       \
                        for (int64_t x = 0; x < w; x++)                                                                   \
                            to[(((i / side * h + y) * groups + g) * bits + b) * lanes + i % side * w + x] = pixel;        \
                }                                                                                                         \
    }                                                                                                                     \
                                                                                                                          \
    void pool_##name(const type *from, const int64_t *shape, int64_t side, int64_t lanes, int64_t bits, int32_t *sums)    \
    { /* columns first: of each lane and channel, the sum of its codes */                                                 \
        const int64_t n = shape[0], groups = shape[1], h = shape[2], w = shape[3], per = 8 * sizeof(type);                \
        int32_t column[8 * sizeof(type)][256];                                                                            \
        for (int64_t s = 0; s < (n + side - 1) / side; s++)                                                               \
            for (int64_t g = 0; g < groups; g++) {                                                                        \
                memset(column, 0, sizeof column);                                                                         \
                for (int64_t y = 0; y < h; y++) {                                                                         \
                    const type *tile = from + ((s * h + y) * groups + g) * bits * lanes;                                  \
                    for (int64_t k = 0; k < per; k++)                                                                     \
                        for (int64_t b = 0; b < bits; b++)                                                                \
                            for (int64_t x = 0; x < lanes; x++)                                                           \
                                column[k][x] += (int32_t)(tile[b * lanes + x] >> k & 1) << b;                             \
                }                                                                                                         \
                for (int64_t i = 0; i < side && s * side + i < n; i++)                                                    \
                    for (int64_t k = 0; k < per; k++)                                                                     \
                        for (int64_t x = 0; x < w; x++)                                                                   \
                            sums[((s * side + i) * groups + g) * per + k] += column[k][i * w + x];                        \
            }                                                                                                             \
    }

FOR_PIXELS(uint8_t, 8)
FOR_PIXELS(uint16_t, 16)
FOR_PIXELS(uint32_t, 32)

/* Rows of pixels that come from few other rows, two by two: where they begin, by the number of a pattern which pixel of
   both goes where (mask) and whether it does (all ones or zero). */
#define FOR_ROWS(type, bits, width)                                                                                       \
    void shuffle_##bits##_##width(const type *from, const int32_t *rows, const int32_t *patterns, const type *masks,      \
                                  int64_t tiles, int64_t planes, int64_t pairs, type *to)                                 \
    {                                                                                                                     \
        typedef type row __attribute__((vector_size(sizeof(type) * width)));                                              \
        for (int64_t t = 0; t < tiles; t++)                                                                               \
            for (int64_t q = 0; q < pairs; q++) {                                                                         \
                const int32_t *at = rows + 2 * (t * pairs + q);                                                           \
                row mask, keep, one, other;                                                                               \
                memcpy(&mask, masks + (patterns[t] * pairs + q) * 2 * width, sizeof mask);                                \
                memcpy(&keep, masks + ((patterns[t] * pairs + q) * 2 + 1) * width, sizeof keep);                          \
                for (int64_t p = 0; p < planes; p++) {                                                                    \
                    memcpy(&one, from + at[0] + p * width, sizeof one);                                                   \
                    memcpy(&other, from + at[1] + p * width, sizeof other);                                               \
                    one = __builtin_shuffle(one, other, mask) & keep;                                                     \
                    if (q) {                                                                                              \
                        memcpy(&other, to + (t * planes + p) * width, sizeof other);                                      \
                        one |= other;                                                                                     \
                    }                                                                                                     \
                    memcpy(to + (t * planes + p) * width, &one, sizeof one);                                              \
                }                                                                                                         \
            }                                                                                                             \
    }

FOR_ROWS(uint8_t, 8, 16)
FOR_ROWS(uint8_t, 8, 32)
FOR_ROWS(uint16_t, 16, 32)

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
    static const int bits[FIELDS] = {MULTIPLIER_BITS, MULTIPLIER_BITS, MULTIPLIER_BITS,
                                     MULTIPLIER_BITS, OFFSET_BITS,     VALUE_OFFSET_BITS};
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
        const int numbers = r[0] <= REQUIRE; /* the others have addresses in their rows */
        const double *a = v + (numbers ? r[3] : 0), *b = v + (numbers ? r[5] : 0), *c = v + (numbers ? r[7] : 0);
        double *to = v + (numbers || r[0] == MOMENTS || r[0] == ROUND ? r[2] : 0);
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
        case GRADIENT: { /* sums, wide or not, by their index of r[7] bits, times v[r[5]], to the floats from r[2] on */
            float *out = (float *)pointers[0] + r[2];
            if (r[7] == 16)
                scale_sums_16((const void *)r[3], r[6], (const uint16_t *)r[4], n, v[r[5]], out);
            else
                scale_sums_32((const void *)r[3], r[6], (const int32_t *)r[4], n, v[r[5]], out);
            break;
        }
        case ROUND: { /* weights pointers[r[3]] of r[4] by n by r[5] to codes; scale, magnitudes and totals to v */
            int16_t *codes = (int16_t *)r[7];
            int64_t *sums = (int64_t *)r[8];
            uint8_t *low = (uint8_t *)r[9] + 1, *high = r[10] ? (uint8_t *)r[10] + 1 : 0; /* behind a 0 */
            const int64_t count = r[4] * n * r[5];
            round_weights(pointers[r[3]], r[4], n, r[5], (double)r[6], to, codes, sums, sums + n);
            for (int64_t k = 0; k < n; k++) {
                if (!isfinite(to[k])) return i;
                to[n + k] = (double)sums[k];
                to[2 * n + k] = (double)sums[n + k];
            }
            for (int64_t k = 0; k < count; k++) low[k] = (uint8_t)codes[k];
            for (int64_t k = 0; high && k < count; k++) high[k] = (uint8_t)((uint16_t)codes[k] >> 8);
            break;
        }
        case PACK: {
            const uint8_t *low = (const uint8_t *)r[2], *high = (const uint8_t *)r[9];
            if (r[8] == 16)
                pack_weights_16(low, high, (const uint16_t *)r[3], n, r[4], r[5], r[6], (uint64_t *)r[7]);
            else
                pack_weights_32(low, high, (const int32_t *)r[3], n, r[4], r[5], r[6], (uint64_t *)r[7]);
            break;
        }
        }
    }
    return -1;
}
