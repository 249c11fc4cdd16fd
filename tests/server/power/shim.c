/*
 * A disk that loses power, for tests: preloaded (LD_PRELOAD) into a process, it knows what of the files in one
 * directory has been synced, and on SIGUSR1 ends the process with just that left.
 *
 * What holds:
 *
 * - A file keeps the bytes that it had at its last fsync or fdatasync, and is gone if its directory was not synced
 *   since it was created, or if it was never synced itself. Bytes are counted by the file's length, which is enough for
 *   files that are only appended to; RocksDB preallocates without changing it. sync_file_range promises nothing.
 * - What was there when the process started is on the disk.
 * - Nothing is written after the power went: writers are stopped first, and syncs in progress do not return.
 * - Syncs do not reach the real disk: the shim is the disk.
 *
 * What is not modelled: bytes of one file persisted out of order, renames and removals undone (both count as durable at
 * once), bytes overwritten in place, files truncated by opening them.
 *
 *   POWER_DIR   the directory; not its subdirectories
 *   POWER_HOLD  while this file exists, no sync returns
 *   POWER_LIE   syncs of files whose names end so return and do nothing: a disk that lies
 *
 * The process ends with status 99, or 98 if the shim itself failed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES_MAX = 4096, HOLD_POLL_US = 1000, STATUS_LOST = 99, STATUS_FAILED = 98 };

struct file {
    dev_t dev;
    ino_t ino;
    off_t synced; /* bytes; -1 if never */
    int linked;   /* its directory was synced since it is there */
};

static struct file files[FILES_MAX];
static int files_count;
static pthread_mutex_t files_lock = PTHREAD_MUTEX_INITIALIZER;
/* Writers hold it for reading; the end holds it for writing. */
static pthread_rwlock_t writing = PTHREAD_RWLOCK_INITIALIZER;
static atomic_int lost;
static sem_t signalled;
static const char *dir, *hold, *lie;

static void fail(const char *what) {
    char text[256];
    int length = snprintf(text, sizeof text, "power shim: %s: %s\n", what, strerror(errno));
    ssize_t (*out)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (out && length > 0) out(2, text, (size_t)length);
    _exit(STATUS_FAILED);
}

static void *next(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) fail(name);
    return found;
}

static struct file *find(const struct stat *at, int insert) {
    for (int i = 0; i < files_count; i++)
        if (files[i].dev == at->st_dev && files[i].ino == at->st_ino) return &files[i];
    if (!insert) return NULL;
    if (files_count == FILES_MAX) fail("too many files");
    files[files_count] = (struct file){.dev = at->st_dev, .ino = at->st_ino, .synced = -1, .linked = 0};
    return &files[files_count++];
}

static void forget(const struct stat *at) {
    struct file *file = find(at, 0);
    if (file) *file = files[--files_count];
}

/* Calls back for every regular file in the directory. */
static void each(void (*visit)(const char *path, const struct stat *at)) {
    DIR *open = opendir(dir);
    if (!open) {
        if (errno == ENOENT) return;
        fail(dir);
    }
    for (struct dirent *entry; (entry = readdir(open));) {
        char path[PATH_MAX];
        struct stat at;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (lstat(path, &at) == 0 && S_ISREG(at.st_mode)) visit(path, &at);
    }
    closedir(open);
}

static void is_there(const char *path, const struct stat *at) {
    (void)path;
    struct file *file = find(at, 1);
    file->synced = at->st_size;
    file->linked = 1;
}

static void link_synced(const char *path, const struct stat *at) {
    (void)path;
    find(at, 1)->linked = 1;
}

static void lose(const char *path, const struct stat *at) {
    struct file *file = find(at, 0);
    if (!file || !file->linked || file->synced < 0) {
        if (unlinkat(AT_FDCWD, path, 0) != 0) fail(path);
    } else if (at->st_size > file->synced && truncate(path, file->synced) != 0) {
        fail(path);
    }
}

static void stop_here(void) {
    for (;;) pause();
}

static void *wait_for_signal(void *unused) {
    (void)unused;
    while (sem_wait(&signalled) != 0)
        if (errno != EINTR) fail("waiting");
    atomic_store(&lost, 1);
    pthread_rwlock_wrlock(&writing);
    pthread_mutex_lock(&files_lock);
    each(lose);
    _exit(STATUS_LOST);
}

static void on_signal(int number) {
    (void)number;
    sem_post(&signalled);
}

__attribute__((constructor)) static void start(void) {
    dir = getenv("POWER_DIR");
    hold = getenv("POWER_HOLD");
    lie = getenv("POWER_LIE");
    if (!dir) fail("POWER_DIR is not set");
    each(is_there);
    pthread_t thread;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    if (sem_init(&signalled, 0, 0) != 0) fail("semaphore");
    if (pthread_create(&thread, NULL, wait_for_signal, NULL) != 0) fail("thread");
    if (sigaction(SIGUSR1, &action, NULL) != 0) fail("signal");
}

static int lied_about(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!lie || length < 0) return 0;
    size_t end = strlen(lie);
    return (size_t)length >= end && memcmp(path + length - end, lie, end) == 0;
}

static int sync_of(int fd) {
    struct stat at, own;
    while (hold && access(hold, F_OK) == 0) usleep(HOLD_POLL_US);
    if (fstat(fd, &at) != 0) return -1;
    if (atomic_load(&lost)) stop_here();
    pthread_mutex_lock(&files_lock);
    if (S_ISDIR(at.st_mode) && stat(dir, &own) == 0 && own.st_ino == at.st_ino && own.st_dev == at.st_dev)
        each(link_synced);
    if (S_ISREG(at.st_mode) && at.st_nlink > 0 && !lied_about(fd)) find(&at, 1)->synced = at.st_size;
    pthread_mutex_unlock(&files_lock);
    return 0;
}

int fsync(int fd) { return sync_of(fd); }
int fdatasync(int fd) { return sync_of(fd); }

#define ONCE(type, name, ...)                          \
    static _Atomic(void *) real;                       \
    type (*call)(__VA_ARGS__) = atomic_load(&real);    \
    if (!call) atomic_store(&real, (void *)(call = next(name)))

#define WHILE_POWERED(type, expression)       \
    if (atomic_load(&lost)) stop_here();      \
    pthread_rwlock_rdlock(&writing);          \
    type result = (expression);               \
    int error = errno;                        \
    pthread_rwlock_unlock(&writing);          \
    errno = error;                            \
    return result

ssize_t write(int fd, const void *bytes, size_t count) {
    ONCE(ssize_t, "write", int, const void *, size_t);
    WHILE_POWERED(ssize_t, call(fd, bytes, count));
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ONCE(ssize_t, "writev", int, const struct iovec *, int);
    WHILE_POWERED(ssize_t, call(fd, parts, count));
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    ONCE(ssize_t, "pwrite", int, const void *, size_t, off_t);
    WHILE_POWERED(ssize_t, call(fd, bytes, count, offset));
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    ONCE(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    WHILE_POWERED(ssize_t, call(fd, bytes, count, offset));
}

static int shortened(int fd, off64_t length, int (*call)(int, off64_t)) {
    struct stat at;
    WHILE_POWERED(int, ({
        int done = call(fd, length);
        if (done == 0 && fstat(fd, &at) == 0) {
            pthread_mutex_lock(&files_lock);
            struct file *file = find(&at, 0);
            if (file && file->synced > length) file->synced = length;
            pthread_mutex_unlock(&files_lock);
        }
        done;
    }));
}

int ftruncate(int fd, off_t length) {
    ONCE(int, "ftruncate", int, off64_t);
    return shortened(fd, length, call);
}

int ftruncate64(int fd, off64_t length) {
    ONCE(int, "ftruncate64", int, off64_t);
    return shortened(fd, length, call);
}

/* Inodes are used again: who removes a name takes what is known of its file with it. */
#define REMOVING(path, expression)                                          \
    WHILE_POWERED(int, ({                                                   \
        struct stat at;                                                     \
        pthread_mutex_lock(&files_lock);                                    \
        int known = lstat(path, &at) == 0 && at.st_nlink == 1;              \
        int done = (expression);                                            \
        int why = errno;                                                    \
        if (done == 0 && known) forget(&at);                                \
        pthread_mutex_unlock(&files_lock);                                  \
        errno = why;                                                        \
        done;                                                               \
    }))

int unlink(const char *path) {
    ONCE(int, "unlink", const char *);
    REMOVING(path, call(path));
}

int rename(const char *from, const char *to) {
    ONCE(int, "rename", const char *, const char *);
    REMOVING(to, call(from, to));
}
