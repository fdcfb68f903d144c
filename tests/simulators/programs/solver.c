/* A program as users have them: it reads two parameters in one of several ways, and fails in one of many. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE *open_file(const char *name, const char *mode) {
    FILE *file = fopen(name, mode);
    if (!file) { perror(name); exit(2); }
    return file;
}

static void check(int read, int expected) {
    if (read != expected) { fprintf(stderr, "read %d values of %d\n", read, expected); exit(2); }
}

/* A NumPy file, version 1, of one-dimensional doubles. */
static void write_npy(const char *name, const double *values, int n) {
    FILE *file = open_file(name, "wb");
    char header[118];
    int length = snprintf(header, sizeof header, "{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }", n);
    memset(header + length, ' ', sizeof header - length);
    header[sizeof header - 1] = '\n';
    unsigned char magic[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, sizeof header, 0};
    fwrite(magic, 1, sizeof magic, file);
    fwrite(header, 1, sizeof header, file);
    fwrite(values, sizeof *values, n, file);
    fclose(file);
}

static void write_pids(const char *name, pid_t other) {
    FILE *file = open_file(name, "w");
    fprintf(file, "%d\n%d\n", getpid(), other);
    fclose(file);
}

static const char *tidied;

static void tidy_up(int number) {
    FILE *file = open_file(tidied, "w");
    fprintf(file, "%d\n", number);
    fclose(file);
    _exit(0);
}

static void hang(void) {
    for (;;) pause();
}

/* solver fault NAME FILE */
static int fault(const char *name, const char *path) {
    printf("step 1\n");
    fflush(stdout);
    if (!strcmp(name, "none")) {
        fprintf(open_file(path, "w"), "{\"x\": [1.5, 2]}");
    } else if (!strcmp(name, "segfault")) {
        raise(SIGSEGV);
    } else if (!strcmp(name, "abort")) {
        fprintf(stderr, "double free or corruption\n");
        abort();
    } else if (!strcmp(name, "real_time_signal")) {
        raise(40);
    } else if (!strcmp(name, "exit")) {
        fprintf(stderr, "reading the mesh\n\n\033[31mno convergence\033[0m \xff\n");
        return 3;
    } else if (!strcmp(name, "exit_quietly")) {
        return 4;
    } else if (!strcmp(name, "exit_139")) {
        return 139;
    } else if (!strcmp(name, "garbage")) {
        FILE *file = open_file(path, "wb");
        for (int i = 0; i < 10000; i++) fputc(i * 7919 % 251, file);
        fclose(file);
    } else if (!strcmp(name, "half")) {
        fprintf(open_file(path, "w"), "{\"x\": [1.5, ");
    } else if (!strcmp(name, "empty")) {
        open_file(path, "w");
    } else if (!strcmp(name, "text")) {
        fprintf(open_file(path, "w"), "{\"x\": \"diverged\"}");
    } else if (!strcmp(name, "nan")) {
        fprintf(open_file(path, "w"), "{\"x\": [1, NaN]}");
    } else if (!strcmp(name, "null")) {
        fprintf(open_file(path, "w"), "null");
    } else if (!strcmp(name, "folder")) {
        return execlp("mkdir", "mkdir", path, (char *)0);
    } else if (!strcmp(name, "device")) {
        return symlink("/dev/zero", path);
    } else if (!strcmp(name, "huge")) {
        if (ftruncate(fileno(open_file(path, "w")), 1L << 40)) return 5;
    } else if (!strcmp(name, "linger")) {
        fprintf(open_file(path, "w"), "{\"x\": [1.5, 2]}");
        if (fork() == 0) hang(); /* It holds our pipes open. */
    } else if (!strcmp(name, "chatter")) {
        fprintf(open_file(path, "w"), "{\"x\": [1.5, 2]}");
        if (fork() == 0) for (;;) puts("still here");
    }
    return 0;
}

int main(int argc, char **argv) {
    double a, b;
    long seed;
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "print")) {
        printf("%.17g %.17g %s\n", atof(argv[2]), atof(argv[3]), argv[4]);
    } else if (!strcmp(mode, "json")) {
        FILE *in = open_file(argv[2], "r"), *out = open_file(argv[3], "w");
        check(fscanf(in, "{\"alpha\": %lf, \"beta_\": %lf, \"seed\": %ld}", &a, &b, &seed), 3);
        fprintf(out, "{\"seed\": %ld, \"x\": [[%.17g], [%.17g]]}\n", seed, a, b);
    } else if (!strcmp(mode, "csv")) {
        FILE *in = open_file(argv[2], "r"), *out = open_file(argv[3], "w");
        check(fscanf(in, "alpha,beta_,seed %lf,%lf,%ld", &a, &b, &seed), 3);
        fprintf(out, "what,first,second,seed\nsum,%.17g,%.17g,%ld\n", a, b, seed);
    } else if (!strcmp(mode, "deck")) { /* Files with names of its own, as old programs have them. */
        FILE *in = open_file("deck.nml", "r"), *out = open_file("results/final.dat", "w");
        check(fscanf(in, "&model a=%lf, b=%lf, seed=%ld /", &a, &b, &seed), 3);
        fprintf(out, "# seed, a, b\n%ld %.17g %.17g\n", seed, a, b);
    } else if (!strcmp(mode, "npy")) {
        double values[] = {atof(argv[3]), atof(argv[4]), atof(argv[5])};
        write_npy(argv[2], values, 3);
    } else if (!strcmp(mode, "fault")) {
        return fault(argv[2], argv[3]);
    } else if (!strcmp(mode, "flood")) { /* 100 MB */
        char line[1001];
        memset(line, 'x', 1000);
        line[1000] = '\n';
        for (int i = 0; i < 100000; i++) fwrite(line, 1, 1000, i % 2 ? stderr : stdout);
        fprintf(stdout, "\nthe end\n");
    } else if (!strcmp(mode, "hang")) {
        printf("iteration 17\n");
        fflush(stdout);
        write_pids(argv[2], 0);
        hang();
    } else if (!strcmp(mode, "hang_with_child")) {
        pid_t child = fork();
        if (child == 0) hang();
        write_pids(argv[2], child);
        hang();
    } else if (!strcmp(mode, "stubborn")) {
        signal(SIGTERM, SIG_IGN);
        printf("iteration 17\n");
        fflush(stdout);
        write_pids(argv[2], 0);
        hang();
    } else if (!strcmp(mode, "tidy")) {
        tidied = argv[3];
        signal(SIGTERM, tidy_up);
        write_pids(argv[2], 0);
        hang();
    } else {
        fprintf(stderr, "usage: solver MODE ...\n");
        return 64;
    }
    return 0;
}
