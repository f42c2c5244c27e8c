/* A causal transformer (flow/layers.py) over new positions behind those that a cache holds, for each row as far as that
   row goes: all layers, the final norm, and the means and scales that the head gives (flow/block.py), in float32.

   A group is sixteen tokens of a row, in lanes. No sum depends on the number of threads, on other rows, or on the room that
   is left in the cache. */

#include "lanes.h"

#define AHEAD 8 /* keys and values are fetched this many positions early: they lie scattered */
#define HIDDEN -3e38f
#define UNIT_SCALE 0.541324854612918f /* softplus of it is 1 */

typedef struct {
    const float *norm, *norm_bias, *qkv, *qkv_bias, *out, *out_bias;
    const float *feed_norm, *feed_norm_bias, *up, *up_bias, *down, *down_bias;
} Layer;

/* Sizes of a call: new positions and groups of a row, numbers of a head and of all heads, room in the cache. */
typedef struct {
    int64_t count, groups, head, width, capacity;
} Sizes;

/* ---- norms ------------------------------------------------------------------------------------------------------- */

/* y = (x - mean) / deviation * weight + bias */
static void layer_norm(const lanes *x, const float *weight, const float *bias, int64_t width, lanes *y) {
    lanes mean = {0}, variance = {0};
    for (int64_t d = 0; d < width; d++) mean += x[d];
    mean /= (float)width;
    for (int64_t d = 0; d < width; d++) variance += (x[d] - mean) * (x[d] - mean);
    const lanes rate = 1.0f / square_root(variance / (float)width + 1e-5f);
    for (int64_t d = 0; d < width; d++) y[d] = (x[d] - mean) * rate * weight[d] + bias[d];
}

/* x becomes x / root mean square * (1 + weight) */
static void rms_norm(lanes *x, const float *weight, int64_t width) {
    lanes square = {0};
    for (int64_t d = 0; d < width; d++) square += x[d] * x[d];
    const lanes rate = 1.0f / square_root(square / (float)width + 1e-6f);
    for (int64_t d = 0; d < width; d++) x[d] = x[d] * rate * (1.0f + weight[d]);
}

/* ---- means and scales -------------------------------------------------------------------------------------------- */

/* 4 tanh(x / 4): a polynomial near 0, else by exp(-x / 2) (Cephes, tanhf) */
static inline lanes soft_clip(lanes x) {
    const lanes y = x * 0.25f, size = larger(y, -y), square = y * y, e = exponential(size * -2.0f);
    lanes p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const lanes far = (1.0f - e) / (1.0f + e);
    return 4.0f * choose(size < all(0.625f), p * square * y + y, choose(y < all(0.0f), -far, far));
}

/* log(1 + exp(x)): log(1 + e) = 2 atanh(e / (2 + e)) as a series */
static inline lanes softplus(lanes x) {
    const lanes e = exponential(-larger(x, -x)), w = e / (e + 2.0f), square = w * w;
    lanes p = square * (1.0f / 15) + 1.0f / 13;
    p = p * square + 1.0f / 11;
    p = p * square + 1.0f / 9;
    p = p * square + 1.0f / 7;
    p = p * square + 1.0f / 5;
    p = p * square + 1.0f / 3;
    return larger(x, all(0.0f)) + 2.0f * (p * square * w + w);
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* Scores of the queries with `count` keys; returns the largest of them and of `most`. */
static lanes score(const lanes *query, const float *key, int64_t stride, int64_t count, int64_t head, lanes *scores,
                   lanes most) {
    int64_t j = 0;
    for (; j + MANY <= count; j += MANY, key += MANY * stride) {
        lanes sum[MANY] = {{0}};
        for (int k = 0; k < MANY; k++)
            for (int64_t d = 0; d < head; d += 16) __builtin_prefetch(key + (k + AHEAD) * stride + d);
        for (int64_t d = 0; d < head; d++)
            for (int k = 0; k < MANY; k++) sum[k] += query[d] * key[k * stride + d];
        for (int k = 0; k < MANY; k++) {
            scores[j + k] = sum[k];
            most = larger(most, sum[k]);
        }
    }
    for (; j < count; j++, key += stride) {
        lanes sum = {0};
        for (int64_t d = 0; d < head; d++) sum += query[d] * key[d];
        scores[j] = sum;
        most = larger(most, sum);
    }
    return most;
}

/* Sums over keys of share * value, for SIZE numbers of the values. */
#define GATHER(NAME, SIZE)                                                                                             \
    static void NAME(const lanes *share, const float *value, int64_t stride, int64_t count, lanes *sums) {             \
        lanes sum[SIZE] = {{0}};                                                                                       \
        for (int64_t j = 0; j < count; j++, value += stride) {                                                         \
            __builtin_prefetch(value + AHEAD * stride);                                                                \
            for (int d = 0; d < SIZE; d++) sum[d] += share[j] * value[d];                                              \
        }                                                                                                              \
        for (int d = 0; d < SIZE; d++) sums[d] = sum[d];                                                               \
    }
GATHER(gather_16, 16)
GATHER(gather_2, 2)

/* One group of queries, scaled and turned, behind `past` keys; the last `count` keys are those of the group itself. */
static void attend_group(const lanes *query, const float *keys, const float *values, int64_t stride, int64_t past,
                         int64_t count, int64_t head, lanes *scores, lanes *sums) {
    lanes most = score(query, keys, stride, past, head, scores, all(HIDDEN)), total = {0};
    whole lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    score(query, keys + past * stride, stride, count, head, scores + past, most);
    for (int64_t j = past; j < past + count; j++) {
        scores[j] = choose(lane >= (int32_t)(j - past), scores[j], all(HIDDEN));
        most = larger(most, scores[j]);
    }
    for (int64_t j = 0; j < past + count; j++) {
        scores[j] = exponential(scores[j] - most);
        total += scores[j];
    }
    int64_t d = 0;
    for (; d + 16 <= head; d += 16) gather_16(scores, values + d, stride, past + count, sums + d);
    for (; d < head; d += 2) gather_2(scores, values + d, stride, past + count, sums + d);
    for (d = 0; d < head; d++) sums[d] /= total;
}

/* Pairs of x (head) turned by (cosine, sine) pairs, times `scale`. */
static void turn(const lanes *x, const lanes *by, float scale, int64_t head, lanes *y) {
    for (int64_t d = 0; d < head; d += 2) {
        y[d] = (x[d] * by[d] - x[d + 1] * by[d + 1]) * scale;
        y[d + 1] = (x[d] * by[d + 1] + x[d + 1] * by[d]) * scale;
    }
}

static int64_t tokens_of(const Sizes *s, int64_t group) {
    const int64_t left = s->count - group * LANES;
    return left < LANES ? left : LANES;
}

/* One head of one row: its new keys and values are stored, then its queries attend. qkv (groups, 3 width), turns
   (groups, head) and attended (groups, width) of the row; past: its valid positions; attended NULL: only store. */
static void attend_head(const Sizes *s, const lanes *qkv, const lanes *turns, int64_t head, int64_t past, float *keys,
                        float *values, lanes *scores, lanes *attended) {
    const int64_t e = s->head, at = head * e;
    lanes *turned = scores + s->capacity;
    keys += at;
    values += at;
    for (int64_t g = 0; g < s->groups; g++) {
        const int64_t place = (past + g * LANES) * s->width, tokens = tokens_of(s, g);
        turn(qkv + (3 * g + 1) * s->width + at, turns + g * e, 1.0f, e, turned);
        spread(turned, tokens, e, s->width, keys + place);
        spread(qkv + (3 * g + 2) * s->width + at, tokens, e, s->width, values + place);
    }
    if (attended == NULL) return;
    for (int64_t g = 0; g < s->groups; g++) {
        turn(qkv + 3 * g * s->width + at, turns + g * e, 1.0f / __builtin_sqrtf((float)e), e, turned);
        attend_group(turned, keys, values, s->width, past + g * LANES, tokens_of(s, g), e, scores,
                     attended + g * s->width + at);
    }
}

/* ---- the transformer --------------------------------------------------------------------------------------------- */

/* Work for all threads: `of` outputs of every group, cut into slices where groups are few; runs in a parallel region. */
#define EVERY_SLICE(OF)                                                                                                \
    _Pragma("omp for schedule(dynamic, 1)") for (int64_t task = 0; task < total * slices; task++)                      \
        for (int64_t g = task / slices, slice = task % slices, step = ((OF) / slices + MANY - 1) / MANY * MANY,        \
                     begin = slice * step < (OF) ? slice * step : (OF),                                                \
                     end = slice + 1 < slices && begin + step < (OF) ? begin + step : (OF), once = 1;                  \
             once; once = 0)

/* hidden (rows, count, width) in; turns (rows or 1, count, head / 2) complex, turns_stride numbers from row to row; keys,
   values (layers, rows, capacity, heads, head), row_stride and layer_stride numbers from row to row and layer to layer;
   length (rows) valid positions. Out: normed (rows, count, width), mean and scale (rows, count, channels); with normed
   NULL only keys and values are wanted, and the last layer ends with them. Returns 1 where there is no memory. */
int run_block(const float *hidden, const float *turns, float *keys, float *values, const int64_t *length,
              const Layer *layers, const float *norm, const float *head, const float *head_bias, float *normed,
              float *mean, float *scale, int64_t rows, int64_t count, int64_t depth, int64_t heads, int64_t head_width,
              int64_t capacity, int64_t turns_stride, int64_t row_stride, int64_t layer_stride, int64_t channels,
              int64_t threads) {
    const int64_t width = heads * head_width, groups = (count + LANES - 1) / LANES, total = rows * groups;
    const Sizes s = {count, groups, head_width, width, capacity};
    const int64_t slices = threads == 1 || total >= 4 * threads ? 1 : 8;
    const int64_t each = 9 * width + head_width + 2 * channels;
    const int64_t own = capacity + head_width + width;
    lanes *const x = space_for(total * each + threads * own);
    if (x == NULL) return 1;
    lanes *const qkv = x + total * width, *const attended = qkv + 3 * total * width;
    lanes *const up = attended + total * width, *const angles = up + 4 * total * width;
    lanes *const ends = angles + total * head_width;
#pragma omp parallel num_threads(threads)
    {
        lanes *const scores = x + total * each + omp_get_thread_num() * own, *const calm = scores + capacity + head_width;
#pragma omp for schedule(static)
        for (int64_t g = 0; g < total; g++) {
            const int64_t row = g / groups, first = g % groups * LANES, tokens = tokens_of(&s, g % groups);
            collect(hidden + (row * count + first) * width, tokens, width, width, x + g * width);
            collect(turns + row * turns_stride + first * head_width, tokens, head_width, head_width,
                    angles + g * head_width);
        }
        for (int64_t l = 0; l < depth; l++) {
            const Layer *layer = layers + l;
            const int last = normed == NULL && l + 1 == depth;
            EVERY_SLICE(3 * width) {
                layer_norm(x + g * width, layer->norm, layer->norm_bias, width, calm);
                product(layer->qkv, layer->qkv_bias, calm, width, begin, end, qkv + 3 * g * width, SET);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < rows * heads; task++) {
                const int64_t row = task / heads, at = l * layer_stride + row * row_stride;
                attend_head(&s, qkv + 3 * row * groups * width, angles + row * groups * head_width, task % heads,
                            length[row], keys + at, values + at, scores, last ? NULL : attended + row * groups * width);
            }
            if (last) break;
            EVERY_SLICE(width) product(layer->out, layer->out_bias, attended + g * width, width, begin, end,
                                       x + g * width, ADD);
            EVERY_SLICE(4 * width) {
                layer_norm(x + g * width, layer->feed_norm, layer->feed_norm_bias, width, calm);
                product(layer->up, layer->up_bias, calm, width, begin, end, up + 4 * g * width, GELU);
            }
            EVERY_SLICE(width) product(layer->down, layer->down_bias, up + 4 * g * width, 4 * width, begin, end,
                                       x + g * width, ADD);
        }
        if (normed != NULL) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t g = 0; g < total; g++) {
                const int64_t at = g / groups * count + g % groups * LANES, tokens = tokens_of(&s, g % groups);
                rms_norm(x + g * width, norm, width);
                lanes *const made = ends + 2 * g * channels;
                product(head, head_bias, x + g * width, width, 0, 2 * channels, made, SET);
                for (int64_t c = 0; c < channels; c++) {
                    made[c] = softplus(soft_clip(made[c]) + UNIT_SCALE);
                    made[channels + c] = soft_clip(made[channels + c]);
                }
                spread(x + g * width, tokens, width, width, normed + at * width);
                spread(made, tokens, channels, channels, scale + at * channels);
                spread(made + channels, tokens, channels, channels, mean + at * channels);
            }
        }
    }
    free(x);
    return 0;
}
