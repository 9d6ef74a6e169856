/* A drive as Python holds it: opening and closing, the other ends of the rings, and the bells between the threads. */

#define _GNU_SOURCE

#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "drive.h"

#define CACHE_LINE_BYTES 64

static void bell_ring(int fd)
{
    uint64_t one = 1;
    ssize_t written = write(fd, &one, sizeof(one));

    (void)written; /* fails only when the counter is full, and then it is readable all the same */
}

static void bell_clear(int fd)
{
    uint64_t count;
    ssize_t got = read(fd, &count, sizeof(count));

    (void)got; /* nothing was there: fine */
}

static void futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *limit)
{
    syscall(SYS_futex, word, operation, value, limit, NULL, 0); /* whoever waits looks again, whatever came of it */
}

/* For the reactor: wait until a command comes or the drive is closed, at most so long. */
void drive_rest(struct drive *drive, const struct timespec *longest)
{
    atomic_store(&drive->sleeping, 1);
    atomic_thread_fence(memory_order_seq_cst);
    if (ring_filled(&drive->command_ring) == 0 && !atomic_load(&drive->stopping)) {
        futex(&drive->sleeping, FUTEX_WAIT_PRIVATE, 1, longest);
    }
    atomic_store(&drive->sleeping, 0);
}

/* Pairs with drive_rest: either it sees what was done before, or this sees that it sleeps. */
static void wake(struct drive *drive)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&drive->sleeping) != 0) {
        atomic_store(&drive->sleeping, 0);
        futex(&drive->sleeping, FUTEX_WAKE_PRIVATE, 1, NULL);
    }
}

void drive_notify(struct drive *drive)
{
    if (!atomic_exchange(&drive->signalled, true)) {
        bell_ring(drive->done_fd);
    }
}

void drive_set_state(struct drive *drive, enum drive_state state)
{
    if (drive->view.state != (uint32_t)state) {
        __atomic_store_n(&drive->view.state, (uint32_t)state, __ATOMIC_RELEASE);
        drive_notify(drive);
    }
}

static void *zeroed(size_t bytes)
{
    size_t whole = (bytes + CACHE_LINE_BYTES - 1) & ~(size_t)(CACHE_LINE_BYTES - 1);
    void *memory = aligned_alloc(CACHE_LINE_BYTES, whole);

    return memory == NULL ? NULL : memset(memory, 0, whole);
}

static void release(struct drive *drive)
{
    if (drive->done_fd >= 0) {
        close(drive->done_fd);
    }
    free((char *)drive->options.transport);
    free(drive->commands);
    free(drive->completions);
    free(drive->requests);
    free(drive);
}

static bool start(struct drive *drive)
{
    pthread_attr_t attributes;
    int result;

    cpu_set_t cores;

    pthread_attr_init(&attributes);
    drive->shares_core = drive->options.core < 0 ||
                         pthread_getaffinity_np(pthread_self(), sizeof(cores), &cores) != 0 ||
                         CPU_ISSET(drive->options.core, &cores);
    if (drive->options.core >= 0) {
        CPU_ZERO(&cores);
        CPU_SET(drive->options.core, &cores);
        pthread_attr_setaffinity_np(&attributes, sizeof(cores), &cores);
    }
    result = pthread_create(&drive->thread, &attributes, reactor_run, drive);
    pthread_attr_destroy(&attributes);
    return result == 0;
}

struct drive *drive_open(const struct drive_options *options)
{
    uint32_t entries = options->commands_max;
    struct drive *drive = zeroed(sizeof(*drive));

    if (drive == NULL) {
        return NULL;
    }
    drive->options = *options;
    drive->view.nsid = options->nsid;
    strncpy(drive->host_nqn, options->host_nqn, sizeof(drive->host_nqn) - 1);
    drive->options.transport = strdup(options->transport);
    drive->command_ring.mask = drive->completion_ring.mask = entries - 1;
    drive->commands = zeroed(entries * sizeof(*drive->commands));
    drive->completions = zeroed(entries * sizeof(*drive->completions));
    drive->requests = zeroed(entries * sizeof(*drive->requests));
    drive->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    TAILQ_INIT(&drive->pending);
    TAILQ_INIT(&drive->io);
    TAILQ_INIT(&drive->admin);
    TAILQ_INIT(&drive->held);
    if (drive->options.transport == NULL || drive->commands == NULL || drive->completions == NULL || drive->requests == NULL ||
        drive->done_fd < 0) {
        release(drive);
        return NULL;
    }
    for (uint32_t tag = 0; tag < entries; tag++) {
        drive->requests[tag].drive = drive;
    }
    if (!start(drive)) {
        release(drive);
        return NULL;
    }
    return drive;
}

const struct drive_view *drive_view(struct drive *drive)
{
    return &drive->view;
}

uint64_t drive_address(const char *buffer)
{
    return (uintptr_t)buffer;
}

struct drive_command *drive_commands(struct drive *drive)
{
    return drive->commands;
}

int drive_eventfd(struct drive *drive)
{
    return drive->done_fd;
}

void drive_submit(struct drive *drive, uint32_t count)
{
    ring_produce(&drive->command_ring, count);
    wake(drive);
}

uint32_t drive_reap(struct drive *drive, struct drive_completion *into, uint32_t room)
{
    uint32_t count;

    bell_clear(drive->done_fd);
    atomic_store(&drive->signalled, false);
    count = ring_filled(&drive->completion_ring);
    if (count > room) {
        count = room;
        drive_notify(drive);
    }
    for (uint32_t index = 0; index < count; index++) {
        into[index] = drive->completions[ring_first(&drive->completion_ring)];
        ring_consume(&drive->completion_ring, 1);
    }
    return count;
}

void drive_close(struct drive *drive)
{
    atomic_store(&drive->stopping, true);
    wake(drive);
    pthread_join(drive->thread, NULL);
    release(drive);
}
