// Quantizers and batch normalisation in as few passes over memory as they need.  Quantizers: same IEEE single-precision steps as sw_model/quantize/affine.py,
// one rounding each, so the build must not contract a*b+c (-ffp-contract=off).  Every element is computed on its own and
// extremes do not depend on an order; sums are taken over fixed pieces, which are added in order.  So results do not depend
// on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "wide.h"

// Grid of one row: q = clamp(round((x - zero) * reciprocal), 0, top), value = q * scale + zero.  The random number of
// element i of the row is that of element first + i under the key.
struct RowGrid {
    float zero, reciprocal, scale, top;
    uint32_t key, first;
};

// A dense tensor in memory: samples x pixels x channels.  Element (s, p, c) has the index (s * channels + c) * pixels + p
// in C order of the (samples, channels, pixels) tensor; with one channel that is its place in memory.
struct Layout {
    int64_t samples, channels, pixels;
};

// Per channel, of batch normalisation: mean, 1 / deviation, and what they and the parameters make of x: factor, offset.
struct Statistics {
    float *mean, *inverse, *factor, *offset;
};

namespace {

constexpr float LEAST_NORMAL = 0x1p-126f, LARGEST_SCALE = 0x1p126f;
constexpr uint32_t EXPONENT = 0x7F800000u;
constexpr int LANES = 32, BLOCK = 16, PIECE = 256;  // elements, columns, rows
constexpr int64_t WORTH_A_THREAD = 8192;  // elements; fewer are done before another thread has started

INLINE float flush(float v) { return std::fabs(v) < LEAST_NORMAL ? 0.0f : v; }

INLINE float code(float rounded, const RowGrid& g) {
    const float q = rounded < 0.0f ? 0.0f : rounded;
    return q > g.top ? g.top : q;
}

INLINE float scaled(float x, const RowGrid& g) { return flush(flush(x) - g.zero) * g.reciprocal; }

INLINE float nearest_code(float x, const RowGrid& g) { return code(std::nearbyint(scaled(x, g)), g); }

// floor(t + u) of the exact sum: t's fraction is exact for t >= 0, and so is 1 - u; any t < 0 ends as code 0.
// A subnormal t needs no flushing: it is below every 1 - u, as zero is.
INLINE float stochastic_value(float x, uint32_t index, const RowGrid& g) {
    const float u = static_cast<float>(static_cast<int32_t>(mix(index ^ g.key) >> 8)) * 0x1p-24f;
    const float t = scaled(x, g), whole = std::floor(t);
    return code(whole + (t - whole >= 1.0f - u ? 1.0f : 0.0f), g) * g.scale + g.zero;
}

// Calls body(part, begin, end) for as many parts of 0 .. count-1 as there are threads, or for one.
template <class Body> void split(int64_t count, int64_t unit, int threads, const Body& body) {
    const int parts = threads > 1 && count >= threads && count * unit >= WORTH_A_THREAD ? threads : 1;
    if (parts == 1) return body(0, int64_t{0}, count);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; ++part) body(part, count * part / parts, count * (part + 1) / parts);
}

// Calls body(piece, first row, rows, first column, columns) for all pieces of a matrix.
template <class Body> void pieces(int64_t rows, int64_t channels, int threads, const Body& body) {
    split((rows + PIECE - 1) / PIECE, PIECE * channels, threads, [&](int, int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t row = piece * PIECE, height = std::min<int64_t>(PIECE, rows - row);
            for (int64_t c = 0; c < channels; c += BLOCK) {
                body(piece, row, height, c, std::min<int64_t>(BLOCK, channels - c));
            }
        }
    });
}

// Extremes of numbers, and the greatest magnitude as its bit pattern, which NaN and infinity exceed.
struct Extremes {
    float low = INFINITY, high = -INFINITY;
    uint32_t magnitude = 0;

    INLINE void add(float low_, float high_, uint32_t magnitude_) {
        low = low_ < low ? low_ : low;
        high = high_ > high ? high_ : high;
        magnitude = std::max(magnitude, magnitude_);
    }

    // Minimum and range; false if they are not finite.
    bool range(float& minimum, float& span) const {
        minimum = flush(low);
        span = flush(flush(high) - minimum);
        return magnitude < EXPONENT && std::isfinite(span);
    }
};

bool affine(const Extremes& found, float steps, float floor, uint32_t key, RowGrid& grid) {
    float span;
    if (!found.range(grid.zero, span)) return false;
    grid.scale = std::max(span / steps, floor);
    grid.reciprocal = 1.0f / grid.scale;
    grid.top = steps;
    grid.key = key;
    grid.first = 0;
    return grid.scale <= LARGEST_SCALE;
}

}  // namespace

extern "C" {

WIDE void extremes_part(const float* x, int64_t count, Extremes* found) {
    float low[LANES], high[LANES];
    uint32_t magnitude[LANES] = {};
    std::fill(low, low + LANES, INFINITY);
    std::fill(high, high + LANES, -INFINITY);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int j = 0; j < LANES; ++j) {
            const float v = x[i + j];
            uint32_t bits;
            std::memcpy(&bits, &v, sizeof bits);
            bits &= 0x7FFFFFFFu;
            low[j] = v < low[j] ? v : low[j];
            high[j] = v > high[j] ? v : high[j];
            magnitude[j] = bits > magnitude[j] ? bits : magnitude[j];
        }
    }
    for (int j = 0; j < LANES; ++j) found->add(low[j], high[j], magnitude[j]);
    for (; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], sizeof bits);
        found->add(x[i], x[i], bits & 0x7FFFFFFFu);
    }
}

// Up to BLOCK columns of a matrix of the given row length.
WIDE void column_extremes_part(const float* x, int64_t rows, int64_t stride, int64_t width, Extremes* found) {
    float low[BLOCK], high[BLOCK];
    uint32_t magnitude[BLOCK] = {};
    std::fill(low, low + BLOCK, INFINITY);
    std::fill(high, high + BLOCK, -INFINITY);
    for (int64_t r = 0; r < rows; ++r) {
        float row[BLOCK] = {};
        std::memcpy(row, x + r * stride, width * sizeof(float));
        for (int c = 0; c < BLOCK; ++c) {
            uint32_t bits;
            std::memcpy(&bits, &row[c], sizeof bits);
            bits &= 0x7FFFFFFFu;
            low[c] = row[c] < low[c] ? row[c] : low[c];
            high[c] = row[c] > high[c] ? row[c] : high[c];
            magnitude[c] = bits > magnitude[c] ? bits : magnitude[c];
        }
    }
    for (int64_t c = 0; c < width; ++c) found[c].add(low[c], high[c], magnitude[c]);
}

WIDE void column_nearest_part(const float* x, int64_t rows, int64_t stride, int64_t width, const RowGrid* grids,
                              float* values) {
    float zero[BLOCK], reciprocal[BLOCK], scale[BLOCK];
    for (int64_t c = 0; c < width; ++c) {
        zero[c] = grids[c].zero, reciprocal[c] = grids[c].reciprocal, scale[c] = grids[c].scale;
    }
    const float top = grids[0].top;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < width; ++c) {
            const RowGrid g{zero[c], reciprocal[c], scale[c], top, 0, 0};
            values[r * stride + c] = nearest_code(x[r * stride + c], g) * g.scale + g.zero;
        }
    }
}

WIDE void nearest_part(const float* x, int64_t count, const RowGrid* grid, float* values, uint8_t* codes8) {
    const RowGrid g = *grid;
    if (codes8 && values) {
        for (int64_t i = 0; i < count; ++i) {
            const float q = nearest_code(x[i], g);
            codes8[i] = static_cast<uint8_t>(static_cast<int32_t>(q));
            values[i] = q * g.scale + g.zero;
        }
    } else if (codes8) {
        for (int64_t i = 0; i < count; ++i) codes8[i] = static_cast<uint8_t>(static_cast<int32_t>(nearest_code(x[i], g)));
    } else {
        for (int64_t i = 0; i < count; ++i) values[i] = nearest_code(x[i], g) * g.scale + g.zero;
    }
}

// Pixels begin .. end-1 of one sample; x and values point to the sample.
WIDE void stochastic_part(const float* x, int64_t channels, int64_t pixels, int64_t begin, int64_t end,
                          const RowGrid* grid, float* values) {
    const RowGrid g = *grid;
    if (channels == 1) {
        for (int64_t p = begin; p < end; ++p) {
            values[p] = stochastic_value(x[p], g.first + static_cast<uint32_t>(p), g);
        }
        return;
    }
    const uint32_t step = static_cast<uint32_t>(pixels);
    for (int64_t p = begin; p < end; ++p) {
        const uint32_t index = g.first + static_cast<uint32_t>(p);
        const float* in = x + p * channels;
        float* out = values + p * channels;
        for (uint32_t c = 0; c < static_cast<uint32_t>(channels); ++c) {
            out[c] = stochastic_value(in[c], index + c * step, g);
        }
    }
}

WIDE void dequantize_part(const uint8_t* codes, int64_t count, float scale, float zero, float* values) {
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(static_cast<int32_t>(codes[i])) * scale + zero;
}

WIDE void option_products_part(const float* x, const float* weight, int64_t length, int64_t options,
                               const RowGrid* grids, float* sums) {
    for (int64_t k = 0; k < options; ++k) {
        const RowGrid g = grids[k];
        float lanes[LANES] = {};
        int64_t i = 0;
        for (; i + LANES <= length; i += LANES) {
            for (int j = 0; j < LANES; ++j) lanes[j] += weight[i + j] * (nearest_code(x[i + j], g) * g.scale + g.zero);
        }
        double total = 0;
        for (; i < length; ++i) total += weight[i] * (nearest_code(x[i], g) * g.scale + g.zero);
        for (float lane : lanes) total += lane;
        sums[k] = static_cast<float>(total);
    }
}

static Extremes extremes_of(const float* x, int64_t count, int threads) {
    std::vector<Extremes> parts(std::max(threads, 1));
    split(count, 1, threads, [&](int part, int64_t begin, int64_t end) {
        Extremes found;
        extremes_part(x + begin, end - begin, &found);
        parts[part] = found;
    });
    Extremes all;
    for (const Extremes& part : parts) all.add(part.low, part.high, part.magnitude);
    return all;
}

// Minimum and range of numbers; returns 0, or 1 if they are not finite.
int minimum_and_range(const float* x, int64_t count, int threads, float* minimum, float* span) {
    return extremes_of(x, count, threads).range(*minimum, *span) ? 0 : 1;
}

// Values, or codes, or both, on given grids: one for all, or one per sample.  Stochastic rounding gives values only.
void quantize(const float* x, Layout layout, const RowGrid* grids, int64_t grid_count, int stochastic, int threads,
              float* values, uint8_t* codes8) {
    const int64_t channels = layout.channels, pixels = layout.pixels;
    split(layout.samples * pixels, channels, threads, [&](int, int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t sample = begin / pixels, stop = std::min(end, (sample + 1) * pixels);
            RowGrid grid = grids[grid_count == 1 ? 0 : sample];
            if (grid_count == 1) grid.first += static_cast<uint32_t>(sample * pixels * channels);
            if (stochastic) {
                const int64_t start = sample * pixels * channels;
                stochastic_part(x + start, channels, pixels, begin - sample * pixels, stop - sample * pixels, &grid,
                                values + start);
            } else {
                const int64_t start = begin * channels;
                nearest_part(x + start, (stop - begin) * channels, &grid, values ? values + start : nullptr,
                             codes8 ? codes8 + start : nullptr);
            }
            begin = stop;
        }
    });
}

// Values on the affine grid of the tensor itself.  Returns 0, or 1 if there is none (values not finite, or too large).
int quantize_affine(const float* x, Layout layout, float steps, float floor, uint32_t key, int stochastic, int threads,
                    float* values) {
    RowGrid grid;
    const int64_t count = layout.samples * layout.channels * layout.pixels;
    if (!affine(extremes_of(x, count, threads), steps, floor, key, grid)) return 1;
    quantize(x, layout, &grid, 1, stochastic, threads, values, nullptr);
    return 0;
}

// The same for a C-order matrix with one grid per row, rounded to nearest.
int quantize_affine_rows(const float* x, int64_t rows, int64_t length, float steps, float floor, int threads,
                         float* values) {
    int failed = 0;
    split(rows, length, threads, [&](int, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            Extremes found;
            extremes_part(x + r * length, length, &found);
            RowGrid grid;
            if (!affine(found, steps, floor, 0, grid)) {
#pragma omp atomic write
                failed = 1;
                return;
            }
            nearest_part(x + r * length, length, &grid, values + r * length, nullptr);
        }
    });
    return failed;
}

// The same with one grid per column.
int quantize_affine_columns(const float* x, int64_t rows, int64_t columns, float steps, float floor, int threads,
                            float* values) {
    int failed = 0;
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK;
    split(blocks, rows * BLOCK, threads, [&](int, int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = b * BLOCK, width = std::min<int64_t>(BLOCK, columns - first);
            Extremes found[BLOCK];
            column_extremes_part(x + first, rows, columns, width, found);
            RowGrid grids[BLOCK];
            for (int64_t c = 0; c < width; ++c) {
                if (!affine(found[c], steps, floor, 0, grids[c])) {
#pragma omp atomic write
                    failed = 1;
                    return;
                }
            }
            column_nearest_part(x + first, rows, columns, width, grids, values + first);
        }
    });
    return failed;
}

// Values of codes on one grid.
void dequantize_codes(const uint8_t* codes, int64_t count, float scale, float zero, int threads, float* values) {
    split(count, 1, threads, [&](int, int64_t begin, int64_t end) {
        dequantize_part(codes + begin, end - begin, scale, zero, values + begin);
    });
}

// sums[row * options + k] = sum over the row of weight * value of x on grid k.
void option_products(const float* x, const float* weight, int64_t rows, int64_t length, int64_t options,
                     const RowGrid* grids, int threads, float* sums) {
    split(rows, length, threads, [&](int, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            option_products_part(x + r * length, weight + r * length, length, options, grids, sums + r * options);
        }
    });
}

// -- batch normalisation of a (rows, channels) matrix ----------------------------------------------------------------

// Mean and sum of squared deviations of up to BLOCK columns.
WIDE void moments_part(const float* x, int64_t rows, int64_t stride, int64_t width, float* mean, float* squares) {
    float sum[BLOCK] = {}, centre[BLOCK] = {}, square[BLOCK] = {};
    const auto add = [&](int64_t w) INLINE_LAMBDA {
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < w; ++c) sum[c] += x[r * stride + c];
        }
        for (int64_t c = 0; c < w; ++c) centre[c] = sum[c] / static_cast<float>(rows);
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < w; ++c) {
                const float d = x[r * stride + c] - centre[c];
                square[c] += d * d;
            }
        }
    };
    if (width == BLOCK) add(BLOCK); else add(width);
    std::copy(centre, centre + width, mean);
    std::copy(square, square + width, squares);
}

// y = x * factor + offset, plus the residual, then its positive part.
WIDE void affine_part(const float* x, const float* residual, int64_t rows, int64_t channels, const float* factor,
                      const float* offset, int positive, float* y) {
    const float least = positive ? 0.0f : -INFINITY;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t start = r * channels;
        for (int64_t c = 0; c < channels; ++c) {
            float v = x[start + c] * factor[c] + offset[c];
            if (residual) v += residual[start + c];
            y[start + c] = v < least ? least : v;  // NaN stays
        }
    }
}

// Sums of g and of g * (x - mean) of up to BLOCK columns, where g counts only where y is positive: y itself if given,
// else x * factor + offset (0 and 1: everywhere).  What counts of g is kept where y decides.
WIDE void gradient_sums_part(const float* g, const float* x, const float* y, int64_t rows, int64_t stride,
                             int64_t width, const float* mean, const float* factor, const float* offset, float* kept,
                             float* sums, float* dots) {
    float sum[BLOCK] = {}, dot[BLOCK] = {}, centre[BLOCK] = {}, a[BLOCK] = {}, b[BLOCK] = {};
    std::copy(mean, mean + width, centre);
    std::copy(factor, factor + width, a);
    std::copy(offset, offset + width, b);
    const auto add = [&](int64_t w, auto&& value) INLINE_LAMBDA {
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t start = r * stride;
            for (int64_t c = 0; c < w; ++c) {
                const float v = value(start + c, c);
                sum[c] += v;
                dot[c] += v * (x[start + c] - centre[c]);
            }
        }
    };
    const auto run = [&](int64_t w) INLINE_LAMBDA {
        if (y) {
            add(w, [&](int64_t i, int64_t) INLINE_LAMBDA { return kept[i] = y[i] > 0.0f ? g[i] : 0.0f; });
        } else {
            add(w, [&](int64_t i, int64_t c) INLINE_LAMBDA { return x[i] * a[c] + b[c] > 0.0f ? g[i] : 0.0f; });
        }
    };
    if (width == BLOCK) run(BLOCK); else run(width);
    std::copy(sum, sum + width, sums);
    std::copy(dot, dot + width, dots);
}

// dx = (g - shift - (x - mean) * slope) * factor, where g counts only where x * a + b is positive.
WIDE void input_gradient_part(const float* g, const float* x, int64_t rows, int64_t channels, const float* mean,
                              const float* shift, const float* slope, const float* factor, const float* a,
                              const float* b, float* dx) {
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t start = r * channels;
        for (int64_t c = 0; c < channels; ++c) {
            const float v = x[start + c];
            const float counts = v * a[c] + b[c] > 0.0f ? g[start + c] : 0.0f;
            dx[start + c] = (counts - shift[c] - (v - mean[c]) * slope[c]) * factor[c];
        }
    }
}

// Batch normalisation by the batch's own statistics, which go into the running ones: y = x * factor + offset with
// factor = weight * inverse deviation and offset = bias - mean * factor, plus the residual (if given), then its
// positive part (if asked for).
void normalise(const float* x, const float* residual, int64_t rows, int64_t channels, const float* weight,
               const float* bias, float momentum, float eps, int positive, int threads, float* running_mean,
               float* running_variance, Statistics statistics, float* y) {
    const int64_t count = (rows + PIECE - 1) / PIECE;
    std::vector<float> means(count * channels), squares(count * channels);
    pieces(rows, channels, threads, [&](int64_t piece, int64_t row, int64_t height, int64_t c, int64_t width) {
        moments_part(x + row * channels + c, height, channels, width, &means[piece * channels + c],
                     &squares[piece * channels + c]);
    });
    std::vector<double> centre(channels), deviation(channels);
    for (int64_t piece = 0; piece < count; ++piece) {
        const double before = static_cast<double>(piece * PIECE);
        const double now = static_cast<double>(std::min<int64_t>(PIECE, rows - piece * PIECE));
        const double share = now / (before + now);
        for (int64_t c = 0; c < channels; ++c) {
            const double d = means[piece * channels + c] - centre[c];
            centre[c] += d * share;
            deviation[c] += squares[piece * channels + c] + d * d * share * before;
        }
    }
    const double n = static_cast<double>(rows), m = momentum;
    for (int64_t c = 0; c < channels; ++c) {
        const float mean = static_cast<float>(centre[c]);
        const float inverse = static_cast<float>(1.0 / std::sqrt(deviation[c] / n + eps));
        const float factor = inverse * weight[c];
        statistics.mean[c] = mean, statistics.inverse[c] = inverse, statistics.factor[c] = factor;
        statistics.offset[c] = bias[c] - mean * factor;
        running_mean[c] = static_cast<float>(m * centre[c] + (1.0 - m) * running_mean[c]);
        running_variance[c] = static_cast<float>(m * deviation[c] / (n - 1.0) + (1.0 - m) * running_variance[c]);
    }
    split(rows, channels, threads, [&](int, int64_t begin, int64_t end) {
        const int64_t start = begin * channels;
        affine_part(x + start, residual ? residual + start : nullptr, end - begin, channels, statistics.factor,
                    statistics.offset, positive, y + start);
    });
}

// Gradients of normalise() by x, weight and bias.  y is given if a residual was added before the positive part was
// taken; the gradient by the residual then goes to kept.
void normalise_gradient(const float* g, const float* x, const float* y, int64_t rows, int64_t channels,
                        Statistics statistics, int positive, int threads, float* kept, float* dx, float* dweight,
                        float* dbias) {
    const int64_t count = (rows + PIECE - 1) / PIECE;
    std::vector<float> sums(count * channels), dots(count * channels), zeros(channels, 0.0f), ones(channels, 1.0f);
    const bool from_x = positive && !y;
    const float* a = from_x ? statistics.factor : zeros.data();
    const float* b = from_x ? statistics.offset : ones.data();
    pieces(rows, channels, threads, [&](int64_t piece, int64_t row, int64_t height, int64_t c, int64_t width) {
        const int64_t start = row * channels + c;
        gradient_sums_part(g + start, x + start, y ? y + start : nullptr, height, channels, width, statistics.mean + c,
                           a + c, b + c, kept ? kept + start : nullptr, &sums[piece * channels + c],
                           &dots[piece * channels + c]);
    });
    std::vector<double> sum(channels), dot(channels);
    for (int64_t piece = 0; piece < count; ++piece) {
        for (int64_t c = 0; c < channels; ++c) {
            sum[c] += sums[piece * channels + c];
            dot[c] += dots[piece * channels + c];
        }
    }
    std::vector<float> shift(channels), slope(channels);
    for (int64_t c = 0; c < channels; ++c) {
        const double n = static_cast<double>(rows), inverse = statistics.inverse[c];
        dbias[c] = static_cast<float>(sum[c]);
        dweight[c] = static_cast<float>(dot[c] * inverse);
        shift[c] = static_cast<float>(sum[c] / n);
        slope[c] = static_cast<float>(dot[c] * inverse * inverse / n);
    }
    if (kept) g = kept;
    split(rows, channels, threads, [&](int, int64_t begin, int64_t end) {
        const int64_t start = begin * channels;
        input_gradient_part(g + start, x + start, end - begin, channels, statistics.mean, shift.data(), slope.data(),
                            statistics.factor, a, b, dx + start);
    });
}
}
