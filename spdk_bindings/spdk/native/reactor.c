/* The thread behind a drive: it moves commands and completions, and rests when there is nothing to do. */

#define _GNU_SOURCE

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "drive.h"

#define CACHE_LINE_BYTES 64
#define MICROSECOND_NS 1000ull
#define TICK_NS 10000000ull        /* between looks at timeouts and the admin queue */
#define SPIN_IDLE_NS 30000ull      /* the next command often follows at once */
#define SPIN_SHARED_NS 60000ull
#define SPIN_BUSY_NS 2000000ull    /* longer than a command of a healthy drive takes */
#define NAP_NS 10000ull            /* instead of spinning, on a core that the event loop may need */
#define REST_IDLE_NS 100000000ull  /* keep-alives are due every few seconds, attempts to connect every two */
#define REST_BUSY_NS 50000ull      /* outstanding, but slow */
#define REST_RESET_NS 500000ull

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void ring_bell(int fd)
{
    uint64_t one = 1;
    ssize_t written = write(fd, &one, sizeof(one));

    (void)written; /* fails only when the counter is full, and then it is readable all the same */
}

static void clear_bell(int fd)
{
    uint64_t count;
    ssize_t got = read(fd, &count, sizeof(count));

    (void)got; /* nothing was there: fine */
}

void drive_notify(struct drive *drive)
{
    if (!atomic_exchange(&drive->signalled, true)) {
        ring_bell(drive->done_fd);
    }
}

void drive_set_state(struct drive *drive, enum drive_state state)
{
    if (drive->view.state != (uint32_t)state) {
        __atomic_store_n(&drive->view.state, (uint32_t)state, __ATOMIC_RELEASE);
        drive_notify(drive);
    }
}

/* Wait until a command comes, at most so long. */
static void rest(struct drive *drive, uint64_t longest_ns)
{
    struct pollfd bell = {.fd = drive->wake_fd, .events = POLLIN};
    struct timespec limit = {.tv_sec = 0, .tv_nsec = (long)longest_ns};

    atomic_store(&drive->sleeping, true);
    atomic_thread_fence(memory_order_seq_cst);
    if (ring_filled(&drive->command_ring) == 0 && !atomic_load(&drive->stopping)) {
        if (ppoll(&bell, 1, &limit, NULL) > 0) {
            clear_bell(drive->wake_fd);
        }
    }
    atomic_store(&drive->sleeping, false);
}

/* On a core of its own the reactor spins, as the next completion or command is near. On one that it shares with the event
 * loop it does that only right after commands came, when the loop has just gone to wait. It never yields: whoever else
 * wants the core would get a whole slice for it, some milliseconds. */
static bool should_spin(const struct drive *drive, uint64_t now, uint64_t quiet_ns)
{
    if (drive->shares_core) {
        return is_outstanding(drive) && now < drive->spin_until_ns;
    }
    return quiet_ns < (is_outstanding(drive) ? SPIN_BUSY_NS : SPIN_IDLE_NS);
}

/* Nothing moves. */
static void idle(struct drive *drive, uint64_t now, uint64_t quiet_ns)
{
    switch (drive->phase) {
    case PHASE_CONNECTED:
        if (should_spin(drive, now, quiet_ns)) {
            return;
        }
        if (is_outstanding(drive)) {
            rest(drive, quiet_ns < SPIN_BUSY_NS ? NAP_NS : REST_BUSY_NS);
        } else {
            rest(drive, REST_IDLE_NS);
        }
        return;
    case PHASE_WAITING:
    case PHASE_GONE:
        rest(drive, REST_IDLE_NS);
        return;
    default:
        rest(drive, REST_RESET_NS);
    }
}

/* One round; whether anything moved. */
static bool turn(struct drive *drive, uint64_t now)
{
    bool moved = commands_take(drive);

    if (moved) {
        drive->spin_until_ns = now + SPIN_SHARED_NS;
    }
    if (drive->phase == PHASE_CONNECTED) {
        moved = commands_submit(drive, now) || moved;
    } else if (drive->phase != PHASE_DRAINING && !drive->patient) {
        commands_refuse(drive, STATUS_HOST_PATHING_ERROR);
    }
    if (drive->queue != NULL && !TAILQ_EMPTY(&drive->io)) {
        int32_t count = spdk_nvme_qpair_process_completions(drive->queue, 0);

        moved = moved || count != 0;
        drive->lost = drive->lost || count < 0;
    }
    if (!TAILQ_EMPTY(&drive->admin) && (drive->phase == PHASE_CONNECTED || drive->phase == PHASE_DRAINING)) {
        int32_t count = spdk_nvme_ctrlr_process_admin_completions(drive->controller);

        moved = moved || count > 0;
        drive->lost = drive->lost || count < 0;
    }
    if (drive->lost) {
        controller_lose(drive, now);
        moved = true;
    }
    return controller_step(drive, now) || moved;
}

static void *run(void *argument)
{
    struct drive *drive = argument;
    uint64_t moved_ns, tick_due_ns = 0;

    prctl(PR_SET_TIMERSLACK, 1ul); /* naps are shorter than the usual slack */
    if (!controller_connect(drive)) {
        controller_detach(drive);
        drive_set_state(drive, DRIVE_FAILED);
        return NULL;
    }
    drive_set_state(drive, DRIVE_READY);
    moved_ns = now_ns();
    while (!atomic_load(&drive->stopping)) {
        uint32_t produced = atomic_load(&drive->completion_ring.produced);
        uint64_t now = now_ns();
        bool moved = turn(drive, now);

        if (now >= tick_due_ns) {
            controller_tick(drive, now);
            tick_due_ns = now + TICK_NS;
        }
        if (atomic_load(&drive->completion_ring.produced) != produced) {
            drive->spin_until_ns = 0;
            drive_notify(drive);
        }
        if (moved) {
            moved_ns = now;
        } else {
            idle(drive, now, now - moved_ns);
        }
    }
    drive->hold = true;
    controller_detach(drive);
    return NULL;
}

static void *zeroed(size_t bytes)
{
    size_t whole = (bytes + CACHE_LINE_BYTES - 1) & ~(size_t)(CACHE_LINE_BYTES - 1);
    void *memory = aligned_alloc(CACHE_LINE_BYTES, whole);

    return memory == NULL ? NULL : memset(memory, 0, whole);
}

static void release(struct drive *drive)
{
    if (drive->wake_fd >= 0) {
        close(drive->wake_fd);
    }
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
    result = pthread_create(&drive->thread, &attributes, run, drive);
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
    drive->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    drive->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    TAILQ_INIT(&drive->pending);
    TAILQ_INIT(&drive->io);
    TAILQ_INIT(&drive->admin);
    TAILQ_INIT(&drive->held);
    if (drive->options.transport == NULL || drive->commands == NULL || drive->completions == NULL || drive->requests == NULL ||
        drive->wake_fd < 0 || drive->done_fd < 0) {
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
    /* Pairs with rest(): either it sees the commands, or this sees that it sleeps. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&drive->sleeping)) {
        ring_bell(drive->wake_fd);
    }
}

uint32_t drive_reap(struct drive *drive, struct drive_completion *into, uint32_t room)
{
    uint32_t count;

    clear_bell(drive->done_fd);
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
    ring_bell(drive->wake_fd);
    pthread_join(drive->thread, NULL);
    release(drive);
}
