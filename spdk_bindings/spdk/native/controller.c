/* The controller behind a drive: connecting, timeouts, resets, and coming back after it was lost.
 *
 * A reset, asked for or not, goes CONNECTED -> (DRAINING ->) DISCONNECTING -> RECONNECTING -> CONNECTED, or WAITING for the
 * next attempt. What it ends is answered when the drive cannot use the buffers any more: when a connection is closed, or a
 * PCIe controller was disabled. */

#include <stdio.h>
#include <string.h>

#include <spdk/env.h>

#include "drive.h"

#define MILLISECOND_NS 1000000ull
#define ATTEMPT_MS_MIN 50u
#define ATTEMPT_MS_MAX 2000u
#define HOTPLUG_MS 1000u
#define IO_QUEUE_ENTRIES 256u
#define IO_QUEUE_REQUESTS 2048u /* a command of more than the controller's maximum takes several */

/* SPDK gives a controller that it has already to whoever asks again, but only one reactor may use it. */
static LIST_HEAD(, drive) attached = LIST_HEAD_INITIALIZER(attached);
static pthread_mutex_t attached_lock = PTHREAD_MUTEX_INITIALIZER;

static bool is_attached_elsewhere(struct drive *drive)
{
    struct drive *other;

    pthread_mutex_lock(&attached_lock);
    LIST_FOREACH(other, &attached, attached) {
        if (other != drive && other->controller == drive->controller) {
            break;
        }
    }
    pthread_mutex_unlock(&attached_lock);
    return other != NULL;
}

static void fail(struct drive *drive, const char *cause)
{
    snprintf(drive->view.error, sizeof(drive->view.error), "%s", cause);
}

static void removed(void *argument, struct spdk_nvme_ctrlr *controller)
{
    struct drive *drive = argument;

    (void)controller;
    atomic_store(&drive->removed, true);
}

static bool refuse_new(void *argument, const struct spdk_nvme_transport_id *transport, struct spdk_nvme_ctrlr_opts *options)
{
    (void)argument;
    (void)transport;
    (void)options;
    return false;
}

/* Find the namespace again, and a queue for it. 0, or a negative errno with the cause in the view. */
static int find_namespace(struct drive *drive)
{
    uint32_t nsid = drive->view.nsid;

    if (nsid == 0) {
        nsid = spdk_nvme_ctrlr_get_first_active_ns(drive->controller);
    }
    drive->namespace = nsid == 0 ? NULL : spdk_nvme_ctrlr_get_ns(drive->controller, nsid);
    if (drive->namespace == NULL || !spdk_nvme_ns_is_active(drive->namespace)) {
        fail(drive, "no such namespace");
        return -ENOENT;
    }
    drive->view.nsid = nsid;
    return 0;
}

static int make_queue(struct drive *drive)
{
    struct spdk_nvme_io_qpair_opts options;

    spdk_nvme_ctrlr_get_default_io_qpair_opts(drive->controller, &options, sizeof(options));
    drive->queue = spdk_nvme_ctrlr_alloc_io_qpair(drive->controller, &options, sizeof(options));
    if (drive->queue == NULL) {
        fail(drive, "the controller gives no I/O queue");
        return -ENOMEM;
    }
    drive->active = true;
    drive->lost = false;
    return 0;
}

static bool is_same_drive(const struct drive *drive)
{
    const struct spdk_nvme_ctrlr_data *controller = spdk_nvme_ctrlr_get_data(drive->controller);
    const uint8_t *then = drive->view.controller;

    return memcmp(controller->sn, ((const struct spdk_nvme_ctrlr_data *)then)->sn, sizeof(controller->sn)) == 0 &&
           spdk_nvme_ns_get_num_sectors(drive->namespace) == drive->blocks;
}

bool controller_connect(struct drive *drive)
{
    struct spdk_nvme_ctrlr_opts options;

    if (spdk_nvme_transport_id_parse(&drive->transport, drive->options.transport) != 0) {
        fail(drive, "not a transport id that SPDK understands");
        return false;
    }
    drive->is_pcie = drive->transport.trtype == SPDK_NVME_TRANSPORT_PCIE;
    spdk_nvme_ctrlr_get_default_ctrlr_opts(&options, sizeof(options));
    options.keep_alive_timeout_ms = drive->options.keep_alive_ms;
    options.admin_timeout_ms = drive->options.admin_timeout_ms;
    options.io_queue_size = IO_QUEUE_ENTRIES;
    options.io_queue_requests = IO_QUEUE_REQUESTS;
    options.num_io_queues = 1;
    options.disable_error_logging = true;
    options.fabrics_connect_timeout_us = drive->options.io_timeout_ms * 1000ull;
    if (drive->host_nqn[0] != '\0') {
        memcpy(options.hostnqn, drive->host_nqn, sizeof(options.hostnqn));
    }
    drive->controller = spdk_nvme_connect(&drive->transport, &options, sizeof(options));
    if (drive->controller == NULL) {
        fail(drive, "no NVMe controller answers there");
        return false;
    }
    pthread_mutex_lock(&attached_lock);
    LIST_INSERT_HEAD(&attached, drive, attached);
    pthread_mutex_unlock(&attached_lock);
    if (is_attached_elsewhere(drive)) {
        fail(drive, "this program has attached it already");
        return false;
    }
    memcpy(drive->view.controller, spdk_nvme_ctrlr_get_data(drive->controller), sizeof(drive->view.controller));
    if (find_namespace(drive) != 0) {
        return false;
    }
    memcpy(drive->view.namespace_, spdk_nvme_ns_get_data(drive->namespace), sizeof(drive->view.namespace_));
    drive->blocks = spdk_nvme_ns_get_num_sectors(drive->namespace);
    drive->view.transfer_bytes_max = spdk_nvme_ctrlr_get_max_xfer_size(drive->controller);
    if (make_queue(drive) != 0) {
        return false;
    }
    spdk_nvme_ctrlr_set_remove_cb(drive->controller, removed, drive);
    drive->phase = PHASE_CONNECTED;
    return true;
}

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
    fail(drive, cause);
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
    if (drive->queue != NULL) {
        spdk_nvme_ctrlr_free_io_qpair(drive->queue);
        drive->queue = NULL;
    }
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
    if (find_namespace(drive) != 0 || !is_same_drive(drive)) {
        give_up(drive, "another drive or namespace is in its place");
        return;
    }
    if (make_queue(drive) != 0) {
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

/* SPDK notices that PCIe drives were pulled when it looks for new ones. */
static void check_removal(struct drive *drive, uint64_t now)
{
    if (drive->is_pcie && now >= drive->hotplug_due_ns) {
        struct spdk_nvme_transport_id pcie = {0};

        drive->hotplug_due_ns = now + HOTPLUG_MS * MILLISECOND_NS;
        spdk_nvme_trid_populate_transport(&pcie, SPDK_NVME_TRANSPORT_PCIE);
        spdk_nvme_probe(&pcie, drive, refuse_new, NULL, NULL);
    }
    if (atomic_load(&drive->removed) && drive->phase != PHASE_GONE) {
        if (drive->queue != NULL) {
            spdk_nvme_ctrlr_free_io_qpair(drive->queue);
            drive->queue = NULL;
        }
        give_up(drive, "the drive was removed");
    }
}

/* What is due now and then: keep-alives and events, timeouts, removals. */
void controller_tick(struct drive *drive, uint64_t now)
{
    bool in_time;

    check_removal(drive, now);
    if (drive->phase == PHASE_GONE && is_outstanding(drive)) {
        spdk_nvme_ctrlr_process_admin_completions(drive->controller);
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

void controller_detach(struct drive *drive)
{
    if (drive->queue != NULL) {
        spdk_nvme_ctrlr_free_io_qpair(drive->queue);
        drive->queue = NULL;
    }
    if (drive->controller != NULL) {
        pthread_mutex_lock(&attached_lock);
        LIST_REMOVE(drive, attached);
        pthread_mutex_unlock(&attached_lock);
        spdk_nvme_detach(drive->controller);
        drive->controller = NULL;
    }
}
