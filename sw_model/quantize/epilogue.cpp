// The epilogue of a pass, plane by plane: the arithmetic of host/epilogue.py to the bit.  Wide integers are carried in double
// precision, which holds every one of them: a sum times a factor is below 2**49.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "wide.h"

// Parameters of a channel, as host/epilogue.py names them.
struct Entry {
    int64_t m, o, n, l, b, c;
};

// A pass; pointers may be null where it has no such tensor.  Everything is (images, channels, height, width) in C order.
struct EpiloguePass {
    int64_t images, channels, height, width;
    const float* single;       // exact sums, in one of two types
    const double* twice;
    const Entry* entries;
    const float *side, *added;
    const uint8_t* mask;
    float *a, *k, *s;
    uint8_t* positive;
    int64_t* moments;          // (channels, 4): sum, sum of products, least, greatest
    int64_t* saturated;        // (channels)
    int32_t shift, value_shift, relu, cross;
    int32_t out_bits, out_shift, out_signed, keep_bits, keep_shift, wide_bits, wide_shift;
    int32_t stochastic, codes, phases, mirrored, together, reached;  // as host/step/result_order.py has them; reached: parts
    uint32_t key;
};

namespace {

constexpr double LOW = -131072.0, HIGH = 131071.0;  // of 18 bits
constexpr uint32_t POLYNOMIAL = 0x100B;

struct Limits {
    int32_t low, high;
    Limits(int bits, bool is_signed)
        : low(is_signed ? -(1 << (bits - 1)) : 0), high(is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1) {}
};

// Work memory of a plane.
struct Plane {
    std::vector<int32_t> x, w;
    std::vector<uint32_t> random;
    explicit Plane(int64_t size) : x(size), w(size), random(size) {}
};

// Random numbers of one plane: rows of pixels, phase by phase, each a chain of multiples of alpha.
void draw(const EpiloguePass& p, int64_t image, int64_t channel, uint32_t* out) {
    const int64_t s = p.phases, rows = (p.height + s - 1) / s, columns = (p.width + s - 1) / s;
    const int64_t step = p.together ? p.together : p.channels, first = channel / step * step;
    const int64_t count = std::min(step, p.channels - first);
    const int64_t parts = p.reached, before = p.images * parts * first * rows;
    for (int64_t y = 0; y < p.height; ++y) {
        for (int64_t px = 0; px < s; ++px) {
            const int64_t row = p.mirrored ? rows - 1 - y / s : y / s;
            const int64_t phase = (y % s) * s + px, part = phase * count + channel - first;
            if (phase >= parts) {
                for (int64_t x = px; x < p.width; x += s) out[y * p.width + x] = 0;
                continue;
            }
            const int64_t index = before + (image * parts * count + part) * rows + row;
            const uint32_t h = mix(static_cast<uint32_t>(index) ^ p.key), low = h & 0xFFFF;
            uint32_t multiple = h >> 16;
            for (int64_t i = 0; i < columns; ++i) {
                const int64_t x = (p.mirrored ? columns - 1 - i : i) * s + px;
                if (x < p.width) out[y * p.width + x] = low ^ multiple;
                multiple = (multiple << 1 & 0xFFFF) ^ (multiple >> 15) * POLYNOMIAL;
            }
        }
    }
}

INLINE uint32_t reversed(uint32_t r) {
    r = (r & 0x5555) << 1 | (r >> 1 & 0x5555);
    r = (r & 0x3333) << 2 | (r >> 2 & 0x3333);
    r = (r & 0x0F0F) << 4 | (r >> 4 & 0x0F0F);
    return (r & 0x00FF) << 8 | r >> 8;
}

// x of a plane; returns how many saturated.
template <class Sum>
INLINE int64_t inner(const Sum* sums, const float* added, const uint8_t* mask, int64_t size, const Entry& e, int shift,
                     int32_t* x) {
    const double m = static_cast<double>(e.m), b = static_cast<double>(e.b), o = 512.0 * static_cast<double>(e.o);
    const double half = shift ? std::ldexp(1.0, shift - 1) : 0.0, scale = std::ldexp(1.0, -shift);
    int64_t saturated = 0;
    for (int64_t i = 0; i < size; ++i) {
        double t = static_cast<double>(sums[i]) * m + b;
        if (added) t += static_cast<double>(added[i]) * o;
        if (mask) t = mask[i] ? t : 0.0;
        t = std::floor((t + half) * scale);
        const double kept = std::min(std::max(t, LOW), HIGH);
        saturated += kept != t;
        x[i] = static_cast<int32_t>(kept);
    }
    return saturated;
}

INLINE void value(const int32_t* x, const float* side, int64_t size, const Entry& e, int shift, bool relu, int32_t* w) {
    const double n = static_cast<double>(e.n), c = static_cast<double>(e.c), l = 512.0 * static_cast<double>(e.l);
    const double half = shift ? std::ldexp(1.0, shift - 1) : 0.0, scale = std::ldexp(1.0, -shift);
    const double low = relu ? 0.0 : LOW;
    for (int64_t i = 0; i < size; ++i) {
        double t = static_cast<double>(x[i]) * n + c;
        if (side) t += static_cast<double>(side[i]) * l;
        t = std::floor((t + half) * scale);
        w[i] = static_cast<int32_t>(std::min(std::max(t, low), HIGH));
    }
}

// Codes of a plane; returns how many were clamped.
template <class Noise>
INLINE int64_t codes(const int32_t* values, int64_t size, int shift, Limits limits, float* out, const Noise& noise) {
    int64_t clamped = 0;
    for (int64_t i = 0; i < size; ++i) {
        const int32_t t = (values[i] + noise(i)) >> shift;
        const int32_t kept = std::min(std::max(t, limits.low), limits.high);
        clamped += kept != t;
        out[i] = static_cast<float>(kept);
    }
    return clamped;
}

INLINE void add_moments(const int32_t* x, const float* factor, int64_t size, int64_t* moments) {
    int64_t total = 0, products = 0;
    int32_t least = x[0], greatest = x[0];
    for (int64_t i = 0; i < size; ++i) {
        const int64_t f = factor ? static_cast<int32_t>(factor[i]) : x[i];
        total += x[i];
        products += x[i] * f;
        least = std::min(least, x[i]);
        greatest = std::max(greatest, x[i]);
    }
    moments[0] += total;
    moments[1] += products;
    moments[2] = std::min<int64_t>(moments[2], least);
    moments[3] = std::max<int64_t>(moments[3], greatest);
}

WIDE int64_t x_of_single(const float* sums, const float* added, const uint8_t* mask, int64_t size, const Entry& e,
                         int shift, int32_t* x) {
    return inner(sums, added, mask, size, e, shift, x);
}

WIDE int64_t x_of_twice(const double* sums, const float* added, const uint8_t* mask, int64_t size, const Entry& e,
                        int shift, int32_t* x) {
    return inner(sums, added, mask, size, e, shift, x);
}

WIDE void moments_of(const int32_t* x, const float* factor, int64_t size, int64_t* moments) {
    add_moments(x, factor, size, moments);
}

WIDE int64_t codes_of(const EpiloguePass& p, const Entry& e, const float* side, Plane& plane, int64_t start,
                      int64_t size) {
    const int32_t *x = plane.x.data(), *w = plane.w.data();
    const uint32_t* random = plane.random.data();
    value(x, side, size, e, p.value_shift, p.relu, plane.w.data());
    const auto half = [](int shift) { return shift ? 1 << (shift - 1) : 0; };
    const Limits limits(p.out_bits, p.out_signed), kept(std::max(p.keep_bits, 1), true);
    const int a = 16 - p.out_shift, k = 16 - p.keep_shift, a_half = half(p.out_shift), k_half = half(p.keep_shift);
    int64_t clamped = 0;
    if (p.stochastic) {
        clamped = codes(w, size, p.out_shift, limits, p.a + start,
                        [&](int64_t i) INLINE_LAMBDA { return static_cast<int32_t>(random[i] >> a); });
        if (p.keep_bits) codes(x, size, p.keep_shift, kept, p.k + start,
                               [&](int64_t i) INLINE_LAMBDA { return static_cast<int32_t>(reversed(random[i]) >> k); });
    } else {
        clamped = codes(w, size, p.out_shift, limits, p.a + start, [&](int64_t) INLINE_LAMBDA { return a_half; });
        if (p.keep_bits) codes(x, size, p.keep_shift, kept, p.k + start, [&](int64_t) INLINE_LAMBDA { return k_half; });
    }
    if (p.wide_bits) {
        const int s_half = half(p.wide_shift);
        codes(w, size, p.wide_shift, Limits(p.wide_bits, p.out_signed), p.s + start,
              [&](int64_t) INLINE_LAMBDA { return s_half; });
    }
    if (p.positive) for (int64_t i = 0; i < size; ++i) p.positive[start + i] = w[i] > 0;
    return clamped;
}

void channel(const EpiloguePass& p, int64_t c, Plane& plane) {
    const Entry& e = p.entries[c];
    const int64_t size = p.height * p.width;
    int64_t saturated = 0, moments[4] = {0, 0, INT64_MAX, INT64_MIN};
    for (int64_t image = 0; image < p.images; ++image) {
        const int64_t start = (image * p.channels + c) * size;
        const float* added = p.added ? p.added + start : nullptr;
        const float* side = p.side ? p.side + start : nullptr;
        const uint8_t* mask = p.mask ? p.mask + start : nullptr;
        saturated += p.single ? x_of_single(p.single + start, added, mask, size, e, p.shift, plane.x.data())
                              : x_of_twice(p.twice + start, added, mask, size, e, p.shift, plane.x.data());
        if (p.codes) {
            if (p.stochastic) draw(p, image, c, plane.random.data());
            saturated += codes_of(p, e, side, plane, start, size);
            if (p.moments) moments_of(plane.w.data(), nullptr, size, moments);
        } else {
            moments_of(plane.x.data(), p.cross ? side : nullptr, size, moments);
        }
    }
    p.saturated[c] = saturated;
    if (p.moments) std::copy(moments, moments + 4, p.moments + 4 * c);
}

}

extern "C" {

void epilogue(const EpiloguePass* p, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Plane plane(p->height * p->width);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < p->channels; ++c) channel(*p, c, plane);
    }
}
}
