/* What creating many volumes on a Gluster volume costs with nothing in the way: the calls that making one safely takes.
 *
 *   cc -O2 gfapi_create.c -o gfapi_create $(pkg-config --cflags --libs glusterfs-api) -lpthread   (Debian: libglusterfs-dev)
 *   ./gfapi_create HOST VOLUME FOLDER COUNT THREADS
 *
 * Each file is made under a hidden name, locked, given its size (a hole of 10 GiB), synced, linked into its place, looked at and
 * closed, and its hidden name is removed. Prints seconds. It leaves by _exit: glfs_fini alone takes about 10 s. */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <glusterfs/api/glfs.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static glfs_t *fs;
static const char *folder;
static long count, threads;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        fflush(stderr);
        _exit(1);
    }
}

static void *make(void *argument)
{
    char hidden[512], name[512];
    struct stat st;
    for (long i = (long)argument; i < count; i += threads) {
        snprintf(hidden, sizeof hidden, "%s/.hidden-%ld", folder, i);
        snprintf(name, sizeof name, "%s/n%ld.raw", folder, i);
        glfs_fd_t *fd = glfs_creat(fs, hidden, O_RDWR | O_CREAT | O_EXCL, 0600);
        check(!fd, "glfs_creat");
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1 << 20, .l_len = 1};
        check(glfs_posix_lock(fd, F_SETLK, &lock), "glfs_posix_lock");
        check(glfs_ftruncate(fd, (off_t)10 << 30, NULL, NULL), "glfs_ftruncate");
        check(glfs_fsync(fd, NULL, NULL), "glfs_fsync");
        check(glfs_link(fs, hidden, name), "glfs_link");
        check(glfs_unlink(fs, hidden), "glfs_unlink");
        check(glfs_lstat(fs, name, &st), "glfs_lstat");
        check(glfs_close(fd), "glfs_close");
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: %s HOST VOLUME FOLDER COUNT THREADS\n", argv[0]);
        return 2;
    }
    folder = argv[3];
    count = atol(argv[4]);
    threads = atol(argv[5]);
    fs = glfs_new(argv[2]);
    glfs_set_volfile_server(fs, "tcp", argv[1], 24007);
    glfs_set_logging(fs, "/dev/null", 4);
    check(glfs_init(fs), "glfs_init");
    check(glfs_mkdir(fs, folder, 0755), "glfs_mkdir");
    double start = now();
    pthread_t made[64];
    if (threads > 64)
        threads = 64;
    for (long t = 0; t < threads; t++)
        check(pthread_create(&made[t], NULL, make, (void *)t), "pthread_create");
    for (long t = 0; t < threads; t++)
        pthread_join(made[t], NULL);
    printf("%.4f\n", now() - start);
    fflush(stdout);
    _exit(0);
}
