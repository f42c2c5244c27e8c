/* A network over the sites of a frame (flow/sites.py, SiteNet), in float32.

   A group is sixteen sites of a frame, in lanes. What the 3 x 3 products look at lies in images with a border of zeros, one
   that is read and one that is written. No sum depends on the number of threads or on other frames. */

#include "lanes.h"

#define TAPS 9

typedef struct {
    const float *look, *look_bias, *mix, *mix_bias, *tell, *tell_bias; /* tell NULL: no condition */
} SiteLayer;

/* The picture of a frame: tokens are squares of side x side sites. */
typedef struct {
    int64_t side, columns, height, width, groups, padded; /* columns of tokens; sites; numbers of a padded image */
} Picture;

static float dot(const float *a, const float *b, int64_t count) {
    float sum[LANES] = {0}, all = 0;
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES)
        for (int i = 0; i < LANES; i++) sum[i] += a[j + i] * b[j + i];
    for (; j < count; j++) all += a[j] * b[j];
    for (int i = 0; i < LANES; i++) all += sum[i];
    return all;
}

static int64_t sites_of(const Picture *p, int64_t group) {
    const int64_t left = p->height * p->width - group * LANES;
    return left < LANES ? left : LANES;
}

/* The numbers of a group's sites, out of the tokens (.., side * side * count) of their frame */
static void read_sites(const Picture *p, const float *tokens, int64_t group, int64_t count, lanes *to) {
    memset(to, 0, (size_t)count * sizeof(lanes));
    for (int64_t i = 0; i < sites_of(p, group); i++) {
        const int64_t site = group * LANES + i, y = site / p->width, x = site % p->width, side = p->side;
        const int64_t token = y / side * p->columns + x / side, square = y % side * side + x % side;
        const float *from = tokens + (token * side * side + square) * count;
        for (int64_t k = 0; k < count; k++) to[k][i] = from[k];
    }
}

/* GELU of a group's features into padded images, one per feature */
static void write_image(const Picture *p, const lanes *x, int64_t group, int64_t features, float *image) {
    int64_t at[LANES];
    for (int64_t i = 0; i < LANES; i++) {
        const int64_t site = group * LANES + i;
        at[i] = (site / p->width + 1) * (p->width + 2) + site % p->width + 1;
    }
    for (int64_t k = 0; k < features; k++, image += p->padded) {
        const lanes y = gelu(x[k]);
        for (int64_t i = 0; i < sites_of(p, group); i++) image[at[i]] = y[i];
    }
}

/* What lies around a group's sites, (features, 3, 3): runs of sites that are neighbours in the image as well */
static void read_around(const Picture *p, const float *image, int64_t group, int64_t features, lanes *to) {
    const int64_t run = p->width % LANES == 0 ? LANES : p->width % 8 == 0 ? 8 : 1, count = sites_of(p, group);
    int64_t at[LANES];
    for (int64_t i = 0; i < LANES; i++) {
        const int64_t site = group * LANES + (i < count ? i : 0);
        at[i] = site / p->width * (p->width + 2) + site % p->width;
    }
    for (int64_t k = 0; k < features; k++, image += p->padded)
        for (int64_t tap = 0; tap < TAPS; tap++, to++) {
            const float *from = image + tap / 3 * (p->width + 2) + tap % 3;
            if (run == 8 && count == LANES) {
                memcpy((float *)to, from + at[0], 8 * sizeof(float));
                memcpy((float *)to + 8, from + at[8], 8 * sizeof(float));
            } else if (run == LANES) {
                memcpy((float *)to, from + at[0], LANES * sizeof(float));
            } else {
                for (int64_t i = 0; i < LANES; i++) (*to)[i] = from[at[i]];
            }
        }
}

/* tokens (rows, .., side * side * numbers) of a grid; condition (rows, told) where layers have one; features (rows, width,
   sites). `ends`: weight and bias of stem and first. Returns 1 where there is no memory. */
int run_sites(const float *tokens, const float *condition, const float *const *ends, const SiteLayer *layers,
              float *features, int64_t rows, int64_t grid_rows, int64_t columns, int64_t side, int64_t numbers,
              int64_t width, int64_t depth, int64_t told, int64_t threads) {
    const int64_t sites = grid_rows * columns * side * side, groups = (sites + LANES - 1) / LANES;
    const Picture p = {side, columns, grid_rows * side, columns * side, groups,
                       (grid_rows * side + 2) * (columns * side + 2)};
    const int64_t total = rows * groups, size = rows * width * p.padded, films = rows * depth * 2 * width;
    const int64_t own = (TAPS + 1) * width + numbers;
    lanes *const x = space_for(total * width + threads * own);
    float *const images = malloc((size_t)(2 * size + films) * sizeof(float)), *const film = images + 2 * size;
    const int failed = x == NULL || images == NULL;
#pragma omp parallel num_threads(threads) if (!failed)
    if (!failed) {
        lanes *const near = x + total * width + omp_get_thread_num() * own;
        lanes *const around = near + TAPS * width, *const begun = around + width;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t image = 0; image < 2; image++)
                memset(images + image * size + row * width * p.padded, 0, (size_t)(width * p.padded) * sizeof(float));
            for (int64_t k = 0; k < depth * 2 * width; k++) {
                const SiteLayer *layer = layers + k / (2 * width);
                const int64_t n = k % (2 * width);
                film[row * depth * 2 * width + k] =
                    layer->tell == NULL ? 0.0f
                                        : layer->tell_bias[n] + dot(layer->tell + n * told, condition + row * told, told);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < total; task++) {
            const int64_t row = task / groups, g = task % groups;
            read_sites(&p, tokens + row * sites * numbers, g, numbers, begun);
            product(ends[0], ends[1], begun, numbers, 0, width, around, GELU);
            product(ends[2], ends[3], around, width, 0, width, x + task * width, SET);
            write_image(&p, x + task * width, g, width, images + row * width * p.padded);
        }
        for (int64_t l = 0; l < depth; l++) {
            const SiteLayer *layer = layers + l;
            const float *from = images + l % 2 * size;
            float *to = images + (l + 1) % 2 * size;
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < total; task++) {
                const int64_t row = task / groups, g = task % groups;
                const float *scale = film + (row * depth + l) * 2 * width, *shift = scale + width;
                read_around(&p, from + row * width * p.padded, g, width, near);
                product(layer->look, layer->look_bias, near, TAPS * width, 0, width, around, SET);
                for (int64_t k = 0; k < width; k++) around[k] = gelu(around[k] * (1.0f + scale[k]) + shift[k]);
                product(layer->mix, layer->mix_bias, around, width, 0, width, x + task * width, ADD);
                write_image(&p, x + task * width, g, width, to + row * width * p.padded);
            }
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < total; task++) {
            const int64_t row = task / groups, g = task % groups, count = sites_of(&p, g);
            for (int64_t k = 0; k < width; k++) {
                const lanes y = gelu(x[task * width + k]);
                memcpy(features + (row * width + k) * sites + g * LANES, &y, (size_t)count * sizeof(float));
            }
        }
    }
    free(x);
    free(images);
    return failed;
}
