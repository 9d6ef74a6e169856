/* The thread behind a drive: it moves commands and completions, and rests when there is nothing to do. */

#define _GNU_SOURCE

#include <sys/prctl.h>
#include <time.h>

#include "drive.h"

#define TICK_NS 10000000ull        /* between looks at timeouts and the admin queue */
#define SPIN_IDLE_NS 30000ull      /* the next command often follows at once */
#define SPIN_SHARED_NS 60000ull    /* about a round trip on a loopback connection */
#define SPIN_BUSY_NS 2000000ull    /* longer than a command of a healthy drive takes */
#define NAP_NS 10000ull            /* instead of spinning, on a core that the event loop may need */
#define REST_IDLE_NS 100000000ull  /* keep-alives are due every few seconds, attempts to connect every two */
#define REST_BUSY_NS 50000ull      /* outstanding, but slow */
#define REST_RESET_NS 500000ull    /* a controller takes milliseconds at least */

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Wait until a command comes, at most so long. */
static void rest(struct drive *drive, uint64_t longest_ns)
{
    struct timespec limit = {.tv_sec = 0, .tv_nsec = (long)longest_ns};

    drive_rest(drive, &limit);
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

void *reactor_run(void *argument)
{
    struct drive *drive = argument;
    uint64_t moved_ns, tick_due_ns = 0;

    prctl(PR_SET_TIMERSLACK, 1ul); /* naps are shorter than the usual slack */
    if (!attach(drive)) {
        attach_end(drive);
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
    attach_end(drive);
    return NULL;
}
