/* A damped oscillator, observed with noise: a simulator that is a compiled program.
 *
 *     x'' + 2 damping x' + frequency^2 x = 0,    x(0) = 1,  x'(0) = 0,
 *
 * and every half second the position is measured with Gaussian noise of standard deviation 0.1.
 *
 * usage: oscillator FREQUENCY DAMPING SEED FILE    (radians/s, 1/s, whole number, CSV file to write)
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { MEASUREMENTS = 25, STEPS = 50 };

static const double INTERVAL = 0.5, NOISE = 0.1, PI = 3.14159265358979323846;

/* SplitMix64 (Steele, Lea & Flood 2014): uniform in (0, 1]. */
static double uniform(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((z >> 11) + 1) * 0x1p-53;
}

/* Box & Muller (1958). */
static double normal(uint64_t *state) {
    double radius = sqrt(-2 * log(uniform(state)));
    return radius * cos(2 * PI * uniform(state));
}

/* One step of the classical Runge-Kutta method. */
static void advance(double *x, double *v, double frequency, double damping, double h) {
    double kx[4], kv[4], at_x = *x, at_v = *v;
    const double reach[] = {h / 2, h / 2, h};
    for (int i = 0; i < 4; i++) {
        kx[i] = at_v;
        kv[i] = -2 * damping * at_v - frequency * frequency * at_x;
        if (i < 3) {
            at_x = *x + reach[i] * kx[i];
            at_v = *v + reach[i] * kv[i];
        }
    }
    *x += h / 6 * (kx[0] + 2 * kx[1] + 2 * kx[2] + kx[3]);
    *v += h / 6 * (kv[0] + 2 * kv[1] + 2 * kv[2] + kv[3]);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: oscillator FREQUENCY DAMPING SEED FILE\n");
        return 64;
    }
    double frequency = atof(argv[1]), damping = atof(argv[2]);
    uint64_t state = strtoull(argv[3], NULL, 10);
    FILE *file = fopen(argv[4], "w");
    if (!file) {
        perror(argv[4]);
        return 1;
    }
    double x = 1, v = 0;
    fprintf(file, "time,position\n");
    for (int i = 1; i <= MEASUREMENTS; i++) {
        for (int step = 0; step < STEPS; step++) advance(&x, &v, frequency, damping, INTERVAL / STEPS);
        fprintf(file, "%.17g,%.17g\n", i * INTERVAL, x + NOISE * normal(&state));
    }
    return fclose(file) ? 1 : 0;
}
