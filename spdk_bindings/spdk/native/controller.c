/* The controller behind a drive: timeouts, resets, and coming back after it was lost.
 *
 * A reset, asked for or not, goes CONNECTED -> (DRAINING ->) DISCONNECTING -> RECONNECTING -> CONNECTED, or WAITING for the
 * next attempt. What it ends is answered when the drive cannot use the buffers any more: when a connection is closed, or a
 * PCIe controller was disabled. */

#include "drive.h"

#define MILLISECOND_NS 1000000ull
#define ATTEMPT_MS_MIN 50u
#define ATTEMPT_MS_MAX 2000u

static void answer_reset(struct drive *drive, uint32_t status)
{
    struct request *reset = drive->reset;

    if (reset != NULL) {
        drive->reset = NULL;
        request_complete(reset, status);
    }
}

/* Whoever waits for the controller has waited long enough. */
static void lose_patience(struct drive *drive)
{
    drive->patient = false;
    answer_reset(drive, STATUS_HOST_PATHING_ERROR);
    commands_refuse(drive, STATUS_HOST_PATHING_ERROR);
}

static void give_up(struct drive *drive, const char *cause)
{
    attach_fail(drive, cause);
    drive->phase = PHASE_GONE;
    commands_release(drive);
    lose_patience(drive);
    drive_set_state(drive, DRIVE_GONE);
}

static void disconnect(struct drive *drive, uint64_t now)
{
    drive->patient = drive->phase != PHASE_WAITING;
    drive->due_ns = now + drive->options.io_timeout_ms * MILLISECOND_NS;
    drive->hold = true;
    drive->attempts++;
    bump(&drive->view.resets);
    drive_set_state(drive, DRIVE_RECOVERING);
    attach_free_queue(drive);
    if (spdk_nvme_ctrlr_disconnect(drive->controller) != 0) {
        give_up(drive, "the drive was removed");
        return;
    }
    drive->phase = PHASE_DISCONNECTING;
}

static void wait_for_next_attempt(struct drive *drive, uint64_t now)
{
    uint32_t shift = drive->attempts < 6 ? drive->attempts : 6;
    uint64_t wait_ms = ATTEMPT_MS_MIN << shift;

    drive->phase = PHASE_WAITING;
    drive->due_ns = now + (wait_ms < ATTEMPT_MS_MAX ? wait_ms : ATTEMPT_MS_MAX) * MILLISECOND_NS;
    commands_release(drive);
    lose_patience(drive);
}

static void reconnected(struct drive *drive, uint64_t now)
{
    if (attach_namespace(drive) != 0 || !attach_is_same(drive)) {
        give_up(drive, "another drive or namespace is in its place");
        return;
    }
    if (attach_queue(drive) != 0) {
        wait_for_next_attempt(drive, now);
        return;
    }
    drive->phase = PHASE_CONNECTED;
    drive->attempts = 0;
    commands_release(drive);
    answer_reset(drive, STATUS_SUCCESS);
    drive_set_state(drive, DRIVE_READY);
}

static void abort_all(struct drive *drive)
{
    struct request *request;

    TAILQ_FOREACH(request, &drive->io, link) {
        commands_abort(drive, request);
    }
    TAILQ_FOREACH(request, &drive->admin, link) {
        commands_abort(drive, request);
    }
}

void controller_reset(struct drive *drive, struct request *request, uint64_t now)
{
    drive->reset = request;
    switch (drive->phase) {
    case PHASE_CONNECTED:
        drive->phase = PHASE_DRAINING;
        drive->due_ns = now + drive->options.drain_timeout_ms * MILLISECOND_NS;
        break;
    case PHASE_WAITING:
        drive->due_ns = now;
        break;
    case PHASE_GONE:
        answer_reset(drive, STATUS_HOST_PATHING_ERROR);
        break;
    default:
        break; /* the one under way answers it */
    }
}

/* The controller does not answer any more; not to be called while SPDK runs completions. */
void controller_lose(struct drive *drive, uint64_t now)
{
    drive->lost = false;
    bump(&drive->view.lost);
    if (drive->phase == PHASE_CONNECTED || drive->phase == PHASE_DRAINING) {
        disconnect(drive, now);
    }
}

/* Go on with a reset. Whether there may be more to do at once. */
bool controller_step(struct drive *drive, uint64_t now)
{
    int result;

    switch (drive->phase) {
    case PHASE_DRAINING:
        if (!is_outstanding(drive) || now >= drive->due_ns) {
            disconnect(drive, now);
            return true;
        }
        if (now >= drive->due_ns - drive->options.drain_timeout_ms * MILLISECOND_NS / 2) {
            abort_all(drive);
        }
        return false;
    case PHASE_DISCONNECTING:
        if (spdk_nvme_ctrlr_process_admin_completions(drive->controller) >= 0) {
            return false;
        }
        spdk_nvme_ctrlr_reconnect_async(drive->controller);
        drive->phase = PHASE_RECONNECTING;
        if (!drive->is_pcie) {
            commands_release(drive); /* over a connection that is closed nothing reaches a buffer */
        }
        return true;
    case PHASE_RECONNECTING:
        result = spdk_nvme_ctrlr_reconnect_poll_async(drive->controller);
        if (result == -EAGAIN) {
            if (now >= drive->due_ns && (drive->patient || drive->reset != NULL)) {
                lose_patience(drive);
            }
            return false;
        }
        if (result == 0) {
            reconnected(drive, now);
        } else {
            wait_for_next_attempt(drive, now);
        }
        return true;
    case PHASE_WAITING:
        if (now >= drive->due_ns) {
            disconnect(drive, now);
            return true;
        }
        return false;
    default:
        return false;
    }
}

static bool check_timeouts(struct drive *drive, struct request_list *list, uint64_t timeout_ms, uint64_t now)
{
    struct request *request;

    TAILQ_FOREACH(request, list, link) {
        uint64_t age_ns = now - request->submitted_ns;

        if (age_ns < timeout_ms * MILLISECOND_NS) {
            break;
        }
        if (age_ns >= 2 * timeout_ms * MILLISECOND_NS) {
            return false;
        }
        if (!request->abort_sent) {
            bump(&drive->view.timeouts);
            commands_abort(drive, request);
        }
    }
    return true;
}

/* What is due now and then: keep-alives and events, timeouts, removals. */
void controller_tick(struct drive *drive, uint64_t now)
{
    bool in_time;

    if (drive->phase != PHASE_GONE && attach_is_pulled(drive)) {
        attach_free_queue(drive);
        give_up(drive, "the drive was removed");
    }
    if (drive->phase == PHASE_GONE) {
        attach_end(drive); /* the kernel lets nobody take it out, or put another one in, as long as it is in use */
    }
    if (drive->phase != PHASE_CONNECTED && drive->phase != PHASE_DRAINING) {
        return;
    }
    if (spdk_nvme_ctrlr_process_admin_completions(drive->controller) < 0) {
        drive->lost = true;
        return;
    }
    drive->active = spdk_nvme_ns_is_active(drive->namespace);
    drive_set_state(drive, drive->active ? DRIVE_READY : DRIVE_GONE);
    in_time = check_timeouts(drive, &drive->io, drive->options.io_timeout_ms, now) &&
              check_timeouts(drive, &drive->admin, drive->options.admin_timeout_ms, now);
    drive->lost = drive->lost || !in_time;
}
