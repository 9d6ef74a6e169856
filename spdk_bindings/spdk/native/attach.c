/* Attaching a drive: its controller, its namespace and a queue, at the start and after a reset. */

#include <stdio.h>
#include <string.h>

#include <spdk/env.h>

#include "drive.h"

#define IO_QUEUE_ENTRIES 256u
#define IO_QUEUE_REQUESTS 2048u /* a command of more than the controller's maximum takes several */

/* SPDK gives a controller that it has already to whoever asks again, but only one reactor may use it. */
static LIST_HEAD(, drive) attached = LIST_HEAD_INITIALIZER(attached);
static pthread_mutex_t attached_lock = PTHREAD_MUTEX_INITIALIZER;

/* SPDK walks its list of PCIe controllers without a lock when it looks for removals, and calls `removed` from there. */
static pthread_mutex_t bus_lock = PTHREAD_MUTEX_INITIALIZER;

static bool claim(struct drive *drive)
{
    struct drive *other;

    pthread_mutex_lock(&attached_lock);
    LIST_FOREACH(other, &attached, attached) {
        if (other->controller == drive->controller) {
            break;
        }
    }
    if (other == NULL) {
        LIST_INSERT_HEAD(&attached, drive, attached);
    }
    pthread_mutex_unlock(&attached_lock);
    return other == NULL;
}

static void release(struct drive *drive)
{
    pthread_mutex_lock(&attached_lock);
    LIST_REMOVE(drive, attached);
    pthread_mutex_unlock(&attached_lock);
}

void attach_fail(struct drive *drive, const char *cause)
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

/* VFIO tells SPDK when the kernel wants a drive back. SPDK acts on it when it is asked to look for drives, and does nothing
 * else then; at any other time that is a scan of the whole bus, in which no command makes progress. */
bool attach_is_pulled(struct drive *drive)
{
    struct spdk_nvme_transport_id pcie = {0};

    if (drive->slot != NULL && spdk_pci_device_is_removed(drive->slot)) {
        spdk_nvme_trid_populate_transport(&pcie, SPDK_NVME_TRANSPORT_PCIE);
        pthread_mutex_lock(&bus_lock);
        spdk_nvme_probe(&pcie, NULL, refuse_new, NULL, NULL);
        pthread_mutex_unlock(&bus_lock);
    }
    return atomic_load(&drive->removed);
}

static void connect_controller(struct drive *drive, const struct spdk_nvme_ctrlr_opts *options)
{
    if (drive->is_pcie) {
        pthread_mutex_lock(&bus_lock);
    }
    drive->controller = spdk_nvme_connect(&drive->transport, options, sizeof(*options));
    if (drive->is_pcie) {
        pthread_mutex_unlock(&bus_lock);
    }
}

static void detach_controller(struct drive *drive)
{
    if (drive->is_pcie) {
        pthread_mutex_lock(&bus_lock);
    }
    spdk_nvme_detach(drive->controller);
    if (drive->is_pcie) {
        pthread_mutex_unlock(&bus_lock);
    }
    drive->controller = NULL;
    drive->slot = NULL;
}

int attach_namespace(struct drive *drive)
{
    uint32_t nsid = drive->view.nsid;

    if (nsid == 0) {
        nsid = spdk_nvme_ctrlr_get_first_active_ns(drive->controller);
    }
    drive->namespace = nsid == 0 ? NULL : spdk_nvme_ctrlr_get_ns(drive->controller, nsid);
    if (drive->namespace == NULL || !spdk_nvme_ns_is_active(drive->namespace)) {
        attach_fail(drive, "no such namespace");
        return -ENOENT;
    }
    drive->view.nsid = nsid;
    return 0;
}

int attach_queue(struct drive *drive)
{
    struct spdk_nvme_io_qpair_opts options;

    spdk_nvme_ctrlr_get_default_io_qpair_opts(drive->controller, &options, sizeof(options));
    drive->queue = spdk_nvme_ctrlr_alloc_io_qpair(drive->controller, &options, sizeof(options));
    if (drive->queue == NULL) {
        attach_fail(drive, "the controller gives no I/O queue");
        return -ENOMEM;
    }
    drive->active = true;
    drive->lost = false;
    return 0;
}

void attach_free_queue(struct drive *drive)
{
    if (drive->queue != NULL) {
        spdk_nvme_ctrlr_free_io_qpair(drive->queue);
        drive->queue = NULL;
    }
}

bool attach_is_same(const struct drive *drive)
{
    const struct spdk_nvme_ctrlr_data *controller = spdk_nvme_ctrlr_get_data(drive->controller);
    const uint8_t *then = drive->view.controller;

    return memcmp(controller->sn, ((const struct spdk_nvme_ctrlr_data *)then)->sn, sizeof(controller->sn)) == 0 &&
           spdk_nvme_ns_get_num_sectors(drive->namespace) == drive->blocks;
}

bool attach(struct drive *drive)
{
    struct spdk_nvme_ctrlr_opts options;

    if (spdk_nvme_transport_id_parse(&drive->transport, drive->options.transport) != 0) {
        attach_fail(drive, "not a transport id that SPDK understands");
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
    connect_controller(drive, &options);
    if (drive->controller == NULL) {
        attach_fail(
            drive, drive->is_pcie ? "no NVMe controller answers there, or a program has it already"
                                  : "no NVMe controller answers there");
        return false;
    }
    if (!claim(drive)) {
        attach_fail(drive, "this program has attached it already");
        detach_controller(drive);
        return false;
    }
    memcpy(drive->view.controller, spdk_nvme_ctrlr_get_data(drive->controller), sizeof(drive->view.controller));
    if (attach_namespace(drive) != 0) {
        return false;
    }
    memcpy(drive->view.namespace_, spdk_nvme_ns_get_data(drive->namespace), sizeof(drive->view.namespace_));
    drive->blocks = spdk_nvme_ns_get_num_sectors(drive->namespace);
    if (attach_queue(drive) != 0) {
        return false;
    }
    spdk_nvme_ctrlr_set_remove_cb(drive->controller, removed, drive);
    drive->slot = spdk_nvme_ctrlr_get_pci_device(drive->controller);
    drive->phase = PHASE_CONNECTED;
    return true;
}

void attach_end(struct drive *drive)
{
    attach_free_queue(drive);
    if (drive->controller != NULL) {
        release(drive);
        detach_controller(drive);
    }
}
