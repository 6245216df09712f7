// Quantizers in one pass over memory.  Same IEEE single-precision steps as sw_model/quantizers.py, one rounding each,
// so the build must not contract a*b+c (-ffp-contract=off).  Subnormals are the caller's business.
#include <cmath>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// The loader picks the widest vectors that the processor has, so that one build serves all machines.
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

static inline uint32_t mix(uint32_t h) {
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ (h >> 16);
}

extern "C" {

// Grid of one row: q = clamp(round((x - zero) * reciprocal), 0, top), value = q * scale + zero.  The random number of
// element i of the row is that of element first + i under the key.
struct RowGrid {
    float zero, reciprocal, scale, top;
    uint32_t key, first;
};

// Rounds to nearest, ties to even.  values and codes8 may be null.
WIDE void quantize_nearest(const float* x, int64_t rows, int64_t length, const RowGrid* grids, float* values,
                           uint8_t* codes8) {
    for (int64_t r = 0; r < rows; ++r) {
        const RowGrid g = grids[r];
        const float* in = x + r * length;
        if (codes8) {
            uint8_t* out = codes8 + r * length;
            for (int64_t i = 0; i < length; ++i) {
                float q = std::nearbyint((in[i] - g.zero) * g.reciprocal);
                q = q < 0.0f ? 0.0f : q;
                q = q > g.top ? g.top : q;
                out[i] = static_cast<uint8_t>(static_cast<int32_t>(q));
            }
        }
        if (values) {
            float* out = values + r * length;
            for (int64_t i = 0; i < length; ++i) {
                float q = std::nearbyint((in[i] - g.zero) * g.reciprocal);
                q = q < 0.0f ? 0.0f : q;
                q = q > g.top ? g.top : q;
                out[i] = q * g.scale + g.zero;
            }
        }
    }
}

// Rounds stochastically.
WIDE void quantize_stochastic(const float* x, int64_t rows, int64_t length, const RowGrid* grids, float* values) {
    for (int64_t r = 0; r < rows; ++r) {
        const RowGrid g = grids[r];
        const float* in = x + r * length;
        float* out = values + r * length;
        for (int64_t i = 0; i < length; ++i) {
            const uint32_t word = mix((g.first + static_cast<uint32_t>(i)) ^ g.key) >> 8;
            const float u = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-24f;
            float q = std::floor((in[i] - g.zero) * g.reciprocal + u);
            q = q < 0.0f ? 0.0f : q;
            q = q > g.top ? g.top : q;
            out[i] = q * g.scale + g.zero;
        }
    }
}

// Values of codes on one grid.
WIDE void dequantize_codes(const uint8_t* codes, int64_t count, float scale, float zero, float* values) {
    for (int64_t i = 0; i < count; ++i) {
        values[i] = static_cast<float>(static_cast<int32_t>(codes[i])) * scale + zero;
    }
}

// sums[row * options + k] = sum over the row of weight * value of x on grid k.
WIDE void option_products(const float* x, const float* weight, int64_t rows, int64_t length, int64_t options,
                          const RowGrid* grids, float* sums) {
    constexpr int LANES = 16;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < options; ++k) {
            const RowGrid g = grids[k];
            const float* in = x + r * length;
            const float* w = weight + r * length;
            float lanes[LANES] = {};
            int64_t i = 0;
            for (; i + LANES <= length; i += LANES) {
                for (int j = 0; j < LANES; ++j) {
                    float q = std::nearbyint((in[i + j] - g.zero) * g.reciprocal);
                    q = q < 0.0f ? 0.0f : q;
                    q = q > g.top ? g.top : q;
                    lanes[j] += w[i + j] * (q * g.scale + g.zero);
                }
            }
            double total = 0;
            for (; i < length; ++i) {
                float q = std::nearbyint((in[i] - g.zero) * g.reciprocal);
                q = q < 0.0f ? 0.0f : q;
                q = q > g.top ? g.top : q;
                total += w[i] * (q * g.scale + g.zero);
            }
            for (float lane : lanes) total += lane;
            sums[r * options + k] = static_cast<float>(total);
        }
    }
}
}
