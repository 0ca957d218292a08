/* What moving bulk data of one Gluster volume costs with nothing in the way: the yardstick for uploads and downloads.
 *
 *   cc -O2 gfapi_stream.c -o gfapi_stream $(pkg-config --cflags --libs glusterfs-api)   (Debian: libglusterfs-dev)
 *   ./gfapi_stream HOST VOLUME write|read FILE MIB           one thread, blocks of 1 MiB; write ends with an fsync
 *
 * Prints seconds. It leaves by _exit: glfs_fini alone takes about 10 s. */
#define _GNU_SOURCE
#include <glusterfs/api/glfs.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int fail(const char *what)
{
    perror(what);
    fflush(stderr);
    _exit(1);
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: %s HOST VOLUME write|read FILE MIB\n", argv[0]);
        return 2;
    }
    const char *mode = argv[3];
    off_t size = (off_t)atol(argv[5]) << 20;
    glfs_t *fs = glfs_new(argv[2]);
    glfs_set_volfile_server(fs, "tcp", argv[1], 24007);
    glfs_set_logging(fs, "/dev/null", 4);
    if (glfs_init(fs))
        fail("glfs_init");
    char *block = malloc(BLOCK);
    memset(block, 0x5a, BLOCK);
    glfs_fd_t *fd = !strcmp(mode, "write") ? glfs_creat(fs, argv[4], O_RDWR | O_TRUNC, 0600) : glfs_open(fs, argv[4], O_RDWR);
    if (!fd)
        fail(argv[4]);
    double start = now();
    if (!strcmp(mode, "write")) {
        for (off_t at = 0; at < size; at += BLOCK)
            if (glfs_pwrite(fd, block, BLOCK, at, 0, NULL, NULL) != BLOCK)
                fail("glfs_pwrite");
        if (glfs_fsync(fd, NULL, NULL))
            fail("glfs_fsync");
    } else {
        for (off_t at = 0; at < size; at += BLOCK)
            if (glfs_pread(fd, block, BLOCK, at, 0, NULL) != BLOCK)
                fail("glfs_pread");
    }
    printf("%.4f\n", now() - start);
    fflush(stdout);
    _exit(0);
}
