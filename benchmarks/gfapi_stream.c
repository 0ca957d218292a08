/* What moving bulk data of one Gluster volume costs with nothing in the way: the yardstick for uploads, downloads and copies.
 *
 *   cc -O2 gfapi_stream.c -o gfapi_stream $(pkg-config --cflags --libs glusterfs-api)   (Debian: libglusterfs-dev)
 *   ./gfapi_stream HOST VOLUME write|read FILE MIB           one thread, blocks of 1 MiB; write ends with an fsync
 *   ./gfapi_stream HOST VOLUME copy FILE MIB TARGET          glfs_copy_file_range in pieces of 64 MiB, then an fsync
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

enum { BLOCK = 1 << 20, PIECE = 64 << 20 };

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
        fprintf(stderr, "usage: %s HOST VOLUME write|read|copy FILE MIB [TARGET]\n", argv[0]);
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
    } else if (!strcmp(mode, "read")) {
        for (off_t at = 0; at < size; at += BLOCK)
            if (glfs_pread(fd, block, BLOCK, at, 0, NULL) != BLOCK)
                fail("glfs_pread");
    } else {
        glfs_fd_t *target = argc > 6 ? glfs_creat(fs, argv[6], O_RDWR | O_TRUNC, 0600) : NULL;
        if (!target)
            fail("target");
        for (off_t at = 0; at < size;) {
            off64_t from = at, to = at;
            ssize_t done = glfs_copy_file_range(fd, &from, target, &to, PIECE, 0, NULL, NULL, NULL);
            if (done <= 0)
                fail("glfs_copy_file_range");
            at += done;
        }
        if (glfs_fsync(target, NULL, NULL))
            fail("glfs_fsync");
    }
    printf("%.4f\n", now() - start);
    fflush(stdout);
    _exit(0);
}
