/* Counts every call that changes a file below FAULTY_ROOT, and lets the one numbered FAULTY_AT go wrong: FAULTY_KIND is
 *   kill    the process dies before the call
 *   half    it dies after half of the write; after the whole call where there is nothing to halve
 *   once    the call fails: no space left on the device
 *   always  and so do all after it
 * Loaded by LD_PRELOAD; armed at start, or later by faulty_arm(). Threads, children and what they start share the count
 * in the file FAULTY_COUNT: the number of calls so far, then what the faulty one was. `once` and `always` count only
 * calls that a full disk refuses. The folder .git is git's, and left alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, FAIL, HALF, LONGEST = 2 * PATH_MAX };

static struct { long calls; char what[LONGEST]; } *shared;
static const char *root, *kind;
static long at;

__attribute__((constructor)) void faulty_arm(void)
{
    const char *file = getenv("FAULTY_COUNT");
    root = getenv("FAULTY_ROOT");
    kind = getenv("FAULTY_KIND");
    at = atol(getenv("FAULTY_AT") ? getenv("FAULTY_AT") : "0");
    int fd = root && kind && file ? syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CREAT, 0600) : -1;
    if (fd < 0)
        return;
    if (syscall(SYS_ftruncate, fd, sizeof *shared) == 0)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
}

/* Whether a call changes something below the root: `path` seen from the folder `fd`, or the file `fd` itself. */
static int inside(int fd, const char *path, char *whole)
{
    char link[64];
    size_t length = 0;
    if (!shared)
        return 0;
    if (!path || path[0] != '/') {
        snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
        ssize_t got = readlink(link, whole, PATH_MAX - 1);
        if (got < 0)
            return 0;
        length = got;
    }
    snprintf(whole + length, LONGEST - length, "%s%s", length && path ? "/" : "", path ? path : "");
    size_t most = strlen(root);
    return !strncmp(whole, root, most) && (whole[most] == '/' || !whole[most]) && !strstr(whole, "/.git/");
}

static int verdict(const char *call, int fd, const char *path, int grows)
{
    char found[LONGEST];
    int kept = errno, full = shared && (*kind == 'o' || *kind == 'a'), answer = PASS;
    if (inside(fd, path, found) && (grows || !full)) {
        long number = __sync_add_and_fetch(&shared->calls, 1);
        if (number == at) {
            snprintf(shared->what, sizeof shared->what, "%s %s", call, found + strlen(root));
            if (*kind == 'k')
                kill(getpid(), SIGKILL);
            answer = full ? FAIL : *kind == 'h' ? HALF : PASS;
        } else if (*kind == 'a' && at && number > at)
            answer = FAIL;
    }
    errno = kept;
    return answer;
}

#define DEFINE(type, name, arguments, fd, path, grows, whole, half)                                                    \
    type name arguments                                                                                                \
    {                                                                                                                  \
        int answer = verdict(#name, fd, path, grows);                                                                  \
        if (answer == FAIL)                                                                                            \
            return errno = ENOSPC, -1;                                                                                 \
        if (answer == PASS)                                                                                            \
            return whole;                                                                                              \
        return half, kill(getpid(), SIGKILL);                                                                          \
    }
#define ALL(type, name, arguments, fd, path, grows, whole) DEFINE(type, name, arguments, fd, path, grows, whole, whole)
#define SYS(name, ...) syscall(SYS_##name, __VA_ARGS__)
#define BOTH(MACRO, type, name, ...) MACRO(type, name, __VA_ARGS__) MACRO(type, name##64, __VA_ARGS__)
#define AT AT_FDCWD

DEFINE(ssize_t, write, (int f, const void *b, size_t n), f, 0, 1, SYS(write, f, b, n), SYS(write, f, b, n / 2))
BOTH(DEFINE, ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), f, 0, 1, SYS(pwrite64, f, b, n, o), SYS(pwrite64, f, b, n / 2, o))
DEFINE(ssize_t, writev, (int f, const struct iovec *v, int n), f, 0, 1, SYS(writev, f, v, n), SYS(write, f, v->iov_base, v->iov_len / 2))
BOTH(DEFINE, ssize_t, pwritev, (int f, const struct iovec *v, int n, off_t o), f, 0, 1, SYS(pwritev, f, v, n, o, 0), SYS(pwrite64, f, v->iov_base, v->iov_len / 2, o))
BOTH(DEFINE, ssize_t, sendfile, (int f, int g, off_t *o, size_t n), f, 0, 1, SYS(sendfile, f, g, o, n), SYS(sendfile, f, g, o, n / 2))
DEFINE(ssize_t, copy_file_range, (int f, off_t *o, int g, off_t *p, size_t n, unsigned m), g, 0, 1, SYS(copy_file_range, f, o, g, p, n, m), SYS(copy_file_range, f, o, g, p, n / 2, m))
ALL(int, fsync, (int f), f, 0, 1, SYS(fsync, f))
ALL(int, fdatasync, (int f), f, 0, 1, SYS(fdatasync, f))
BOTH(ALL, int, ftruncate, (int f, off_t n), f, 0, 0, SYS(ftruncate, f, n))
ALL(int, rename, (const char *p, const char *q), AT, q, 1, SYS(renameat2, AT, p, AT, q, 0))
ALL(int, renameat, (int f, const char *p, int g, const char *q), g, q, 1, SYS(renameat2, f, p, g, q, 0))
ALL(int, renameat2, (int f, const char *p, int g, const char *q, unsigned m), g, q, 1, SYS(renameat2, f, p, g, q, m))
ALL(int, link, (const char *p, const char *q), AT, q, 1, SYS(linkat, AT, p, AT, q, 0))
ALL(int, linkat, (int f, const char *p, int g, const char *q, int m), g, q, 1, SYS(linkat, f, p, g, q, m))
ALL(int, symlink, (const char *p, const char *q), AT, q, 1, SYS(symlinkat, p, AT, q))
ALL(int, mkdir, (const char *p, mode_t m), AT, p, 1, SYS(mkdirat, AT, p, m))
ALL(int, mkdirat, (int f, const char *p, mode_t m), f, p, 1, SYS(mkdirat, f, p, m))
ALL(int, unlink, (const char *p), AT, p, 0, SYS(unlinkat, AT, p, 0))
ALL(int, unlinkat, (int f, const char *p, int m), f, p, 0, SYS(unlinkat, f, p, m))
ALL(int, rmdir, (const char *p), AT, p, 0, SYS(unlinkat, AT, p, AT_REMOVEDIR))

/* Opening counts where it makes or empties a file. */
#define OPEN(type, name, arguments, fd)                                                                                \
    type name arguments                                                                                                \
    {                                                                                                                  \
        va_list last;                                                                                                  \
        va_start(last, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(last, mode_t) : 0;                                      \
        va_end(last);                                                                                                  \
        int answer = flags & (O_CREAT | O_TRUNC) ? verdict(#name, fd, p, 1) : PASS;                                    \
        int made = answer == FAIL ? (errno = ENOSPC, -1) : SYS(openat, fd, p, flags, mode);                            \
        return answer == HALF ? kill(getpid(), SIGKILL) : made;                                                        \
    }
BOTH(OPEN, int, open, (const char *p, int flags, ...), AT)
BOTH(OPEN, int, openat, (int f, const char *p, int flags, ...), f)
