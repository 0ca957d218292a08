/* The limit of a refresh of rbd images: the names, then one compound read for each header, from one thread.
 *
 *   rbd_limit MONITOR POOL ROUNDS FLIGHT
 *
 * Declarations by hand, so that no header files of Ceph are needed. FLIGHT says how many reads are under way at once. For
 * each round it prints total=SECONDS: the first one is, like the first refresh of a pool, also the first use of the connection.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void *ptr;
typedef struct {
    char *id, *name;
} spec;

int rados_create(ptr *, const char *);
int rados_conf_read_file(ptr, const char *);
int rados_conf_set(ptr, const char *, const char *);
int rados_connect(ptr);
void rados_shutdown(ptr);
int rados_ioctx_create(ptr, const char *, ptr *);
void rados_ioctx_destroy(ptr);
ptr rados_create_read_op(void);
void rados_release_read_op(ptr);
void rados_read_op_exec_user_buf(ptr, const char *, const char *, const char *, size_t, char *, size_t, size_t *, int *);
int rados_aio_create_completion(void *, void *, void *, ptr *);
int rados_aio_read_op_operate(ptr, ptr, ptr, const char *, int);
int rados_aio_wait_for_complete(ptr);
int rados_aio_get_return_value(ptr);
void rados_aio_release(ptr);
int rbd_list2(ptr, spec *, size_t *);
void rbd_image_spec_list_cleanup(spec *, size_t);

enum { METHODS = 6, MOST = 1024 };
static const char HEAD[9] = {(char)0xfe, -1, -1, -1, -1, -1, -1, -1, 1};
static const struct {
    const char *name;
    size_t length;
} METHOD[METHODS] = {{"get_size", 8}, {"get_features", 9}, {"get_flags", 8}, {"get_snapcontext", 0},
                     {"get_modify_timestamp", 0}, {"parent_get", 0}};

struct flight {
    ptr operation, completion;
    char data[METHODS][4096];
    size_t length[METHODS];
    int result[METHODS];
};

static void check(int result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-result));
        exit(1);
    }
}

static void begin(ptr io, struct flight *one, const char *id) {
    char object[128];
    snprintf(object, sizeof object, "rbd_header.%s", id);
    one->operation = rados_create_read_op();
    for (int n = 0; n < METHODS; n++)
        rados_read_op_exec_user_buf(one->operation, "rbd", METHOD[n].name, HEAD, METHOD[n].length, one->data[n],
                                    sizeof one->data[n], &one->length[n], &one->result[n]);
    rados_aio_create_completion(NULL, NULL, NULL, &one->completion);
    check(rados_aio_read_op_operate(one->operation, io, one->completion, object, 0), "operate");
}

static void end(struct flight *one) {
    rados_aio_wait_for_complete(one->completion);
    check(rados_aio_get_return_value(one->completion), "read");
    for (int n = 0; n < METHODS; n++)
        check(one->result[n], METHOD[n].name);
    rados_aio_release(one->completion);
    rados_release_read_op(one->operation);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void round_of(ptr io, size_t flight) {
    static struct flight flights[MOST];
    static spec images[65536];
    size_t count = 65536, begun = 0;
    double began = now();
    check(rbd_list2(io, images, &count), "list");
    for (size_t ended = 0; ended < count; ended++) {
        for (; begun < count && begun < ended + flight; begun++)
            begin(io, &flights[begun % flight], images[begun].id);
        end(&flights[ended % flight]);
    }
    printf("total=%.6f images=%zu\n", now() - began, count);
    rbd_image_spec_list_cleanup(images, count);
}

int main(int argc, char **argv) {
    ptr cluster, io;
    if (argc != 5 || atoi(argv[4]) < 1 || atoi(argv[4]) > MOST)
        return 2;
    check(rados_create(&cluster, NULL), "create");
    check(rados_conf_read_file(cluster, "/dev/null"), "configuration");
    check(rados_conf_set(cluster, "mon_host", argv[1]), "mon_host");
    check(rados_conf_set(cluster, "auth_supported", "none"), "auth_supported");
    check(rados_connect(cluster), "connect");
    check(rados_ioctx_create(cluster, argv[2], &io), "pool");
    for (int rounds = atoi(argv[3]); rounds > 0; rounds--)
        round_of(io, (size_t)atoi(argv[4]));
    rados_ioctx_destroy(io);
    rados_shutdown(cluster);
    return 0;
}
