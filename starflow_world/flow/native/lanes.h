/* A lane of a vector is a token, or a site: sixteen of a frame are kept as one vector for each of their numbers. Products
   are chains of multiply-adds with a broadcast weight, read where torch has it; all else runs lane by lane. */

#ifndef STARFLOW_LANES
#define STARFLOW_LANES

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

#define LANES 16
#define MANY 8 /* sums that run side by side */

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));

/* ---- lane by lane ------------------------------------------------------------------------------------------------ */

static lanes *space_for(int64_t count) { return aligned_alloc(sizeof(lanes), (size_t)count * sizeof(lanes)); }

static inline lanes all(float x) { return x - (lanes){0}; }

static inline lanes choose(whole mask, lanes yes, lanes no) {
    return (lanes)(((whole)yes & mask) | ((whole)no & ~mask));
}

static inline lanes larger(lanes a, lanes b) { return choose(a > b, a, b); }

static inline lanes square_root(lanes x) {
    for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

/* exp(x) of x <= 0 to an ulp or two: x = n ln 2 + r, a polynomial in r (Cephes, expf); 0 where normal floats end, and
   not a number where x is none */
static inline lanes exponential(lanes x) {
    const whole none = x < all(-87.0f);
    const lanes rounding = all(12582912.0f); /* 1.5 * 2^23: a sum with it has no fraction */
    x = choose(none, all(0.0f), x);
    const lanes n = (x * 1.44269504f + rounding) - rounding;
    const lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const whole power = (__builtin_convertvector(n, whole) + 127) << 23;
    return choose(none, all(0.0f), p * (lanes)power);
}

/* x Phi(x): Phi(-|x|) = exp(-x^2 / 2) P(t), t = 1 / (1 + 0.3 |x|); P fitted to 6e-8 of its value up to |x| = 13 */
static inline lanes gelu(lanes x) {
    const lanes size = larger(x, -x), t = 1.0f / (size * 0.3f + 1.0f);
    lanes p = t * 0.0382711478f - 0.168644205f;
    p = p * t + 0.227579311f;
    p = p * t - 0.0752669200f;
    p = p * t + 0.141676590f;
    p = p * t + 0.0950507745f;
    p = p * t + 0.121825963f;
    p = p * t + 0.119500987f;
    p = p * t + 6.38368056e-6f;
    const lanes below = p * exponential(size * size * -0.5f);
    return x * choose(x < all(0.0f), below, 1.0f - below);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

typedef enum { SET, ADD, GELU } Then;

static inline void put(lanes *y, lanes sum, Then then) {
    *y = then == SET ? sum : then == ADD ? *y + sum : gelu(sum);
}

/* y[n], n from begin to end, from weight[n] . x + bias[n]; weight (.., inner) */
static inline void product(const float *weight, const float *bias, const lanes *x, int64_t inner, int64_t begin, int64_t end,
                    lanes *y, Then then) {
    int64_t n = begin;
    for (; n + MANY <= end; n += MANY) {
        const float *row = weight + n * inner;
        lanes sum[MANY];
        for (int k = 0; k < MANY; k++) sum[k] = all(bias[n + k]);
        for (int64_t j = 0; j < inner; j++)
            for (int k = 0; k < MANY; k++) sum[k] += x[j] * row[k * inner + j];
        for (int k = 0; k < MANY; k++) put(y + n + k, sum[k], then);
    }
    for (; n < end; n++) {
        lanes sum = all(bias[n]);
        for (int64_t j = 0; j < inner; j++) sum += x[j] * weight[n * inner + j];
        put(y + n, sum, then);
    }
}

/* Lanes of a group, as many as it has tokens, to numbers that lie `stride` apart from token to token. */
static inline void spread(const lanes *from, int64_t tokens, int64_t numbers, int64_t stride, float *to) {
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t d = 0; d < numbers; d++) to[i * stride + d] = from[d][i];
}

static inline void collect(const float *from, int64_t tokens, int64_t numbers, int64_t stride, lanes *to) {
    for (int64_t d = 0; d < numbers; d++) {
        to[d] = all(0.0f);
        for (int64_t i = 0; i < tokens; i++) to[d][i] = from[i * stride + d];
    }
}

#endif
