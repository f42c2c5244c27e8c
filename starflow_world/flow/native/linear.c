/* x weight^T + bias, the sums of a row being the same however many rows there are; sixteen rows in lanes. */

#include "lanes.h"

/* x (rows, inner), weight (outputs, inner), bias (outputs) or NULL, y (rows, outputs). Returns 1 where there is no memory. */
int run_linear(const float *x, const float *weight, const float *bias, float *y, int64_t rows, int64_t inner,
               int64_t outputs, int64_t threads) {
    const int64_t groups = (rows + LANES - 1) / LANES, own = inner + outputs;
    lanes *const space = space_for(threads * own);
    float *const none = bias == NULL ? calloc((size_t)outputs, sizeof(float)) : NULL;
    const int failed = space == NULL || (bias == NULL && none == NULL);
#pragma omp parallel for num_threads(threads) schedule(static) if (groups > 1 && !failed)
    for (int64_t g = 0; g < (failed ? 0 : groups); g++) {
        lanes *const from = space + omp_get_thread_num() * own, *const to = from + inner;
        const int64_t first = g * LANES, count = rows - first < LANES ? rows - first : LANES;
        collect(x + first * inner, count, inner, inner, from);
        product(weight, bias == NULL ? none : bias, from, inner, 0, outputs, to, SET);
        spread(to, count, outputs, outputs, y + first * outputs);
    }
    free(space);
    free(none);
    return failed;
}
