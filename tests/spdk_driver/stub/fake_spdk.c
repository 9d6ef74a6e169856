/* A fake of the part of SPDK that the shim uses, with one drive in memory. Its commands take effect when completions are
 * processed, in the order in which they came. */

#include "fake_spdk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include <spdk/env.h>
#include <spdk/log.h>
#include <spdk/nvme.h>

#define BLOCK 4096u
#define FORMAT_NVM 0x80

struct command {
    struct spdk_nvme_cmd raw;
    void *buffer;
    uint64_t lba;
    uint32_t blocks;
    uint32_t length;
    bool aborted;
    spdk_nvme_cmd_cb callback;
    void *argument;
    STAILQ_ENTRY(command) link;
};

STAILQ_HEAD(commands, command);

struct spdk_nvme_qpair {
    struct commands commands;
    uint32_t count;
};

struct spdk_nvme_ns {
    struct spdk_nvme_ns_data data;
};

struct spdk_pci_device {
    char unused;
};

struct spdk_nvme_ctrlr {
    struct spdk_nvme_transport_id transport;
    struct spdk_pci_device slot;
    struct spdk_nvme_ctrlr_data data;
    struct spdk_nvme_ns space;
    struct spdk_nvme_qpair admin;
    bool connected;
    uint32_t references;
    spdk_nvme_remove_cb removed;
    void *removed_context;
};

struct fake fake;
static uint8_t medium[FAKE_BLOCKS * BLOCK];

void fake_begin(void)
{
    memset(&fake, 0, sizeof(fake));
    memset(medium, 0, sizeof(medium));
    fake.room = 512;
    fake.block_bits = 12;
}

struct lever {
    const char *name;
    atomic_uint *number;
    atomic_bool *flag;
};

static const struct lever levers[] = {
    {"hold", NULL, &fake.hold},
    {"silent", NULL, &fake.silent},
    {"dead", NULL, &fake.dead},
    {"slow", NULL, &fake.slow},
    {"pulled", NULL, &fake.pulled},
    {"inactive", NULL, &fake.inactive},
    {"other", NULL, &fake.other},
    {"forgets", NULL, &fake.forgets},
    {"only_writes", NULL, &fake.only_writes},
    {"room", &fake.room, NULL},
    {"next_status", &fake.next_status, NULL},
    {"block_bits", &fake.block_bits, NULL},
    {"connections", &fake.connections, NULL},
    {"scans", &fake.scans, NULL},
    {"attempts", &fake.attempts, NULL},
    {"controllers", &fake.controllers, NULL},
    {"queues", &fake.queues, NULL},
    {"aborts", &fake.aborts, NULL},
    {"performed", &fake.performed, NULL},
    {"last_flags", &fake.last_flags, NULL},
    {"firmware_bytes", &fake.firmware_bytes, NULL},
    {"firmware_slot", &fake.firmware_slot, NULL},
};

static const struct lever *lever(const char *name)
{
    for (size_t index = 0; index < sizeof(levers) / sizeof(levers[0]); index++) {
        if (strcmp(levers[index].name, name) == 0) {
            return &levers[index];
        }
    }
    fprintf(stderr, "the fake has no %s\n", name);
    abort();
}

uint32_t fake_get(const char *name)
{
    const struct lever *found = lever(name);

    return found->flag ? *found->flag : *found->number;
}

void fake_set(const char *name, uint32_t value)
{
    const struct lever *found = lever(name);

    if (found->flag) {
        *found->flag = value != 0;
    } else {
        *found->number = value;
    }
}

/* Environment. */

void spdk_log_set_print_level(enum spdk_log_level level)
{
    (void)level;
}

void spdk_env_opts_init(struct spdk_env_opts *options)
{
    if (options->opts_size != sizeof(*options)) {
        abort();
    }
}

int spdk_env_init(const struct spdk_env_opts *options)
{
    return options->mem_size > 0 ? 0 : -ENOMEM;
}

void *spdk_dma_zmalloc(size_t size, size_t align, uint64_t *unused)
{
    void *memory = size > ((size_t)1 << 30) ? NULL : aligned_alloc(align, size);

    (void)unused;
    if (memory != NULL) {
        memset(memory, 0, size);
        fake.dma_pieces++;
    }
    return memory;
}

void spdk_dma_free(void *memory)
{
    fake.dma_pieces--;
    free(memory);
}

/* Queues. */

static int submit(struct spdk_nvme_qpair *queue, const struct command *template)
{
    int error = atomic_exchange(&fake.next_error, 0);
    struct command *command;

    if (error != 0) {
        return error;
    }
    if (fake.dead) {
        return -ENXIO;
    }
    if (queue->count >= fake.room) {
        return -ENOMEM;
    }
    command = malloc(sizeof(*command));
    *command = *template;
    STAILQ_INSERT_TAIL(&queue->commands, command, link);
    queue->count++;
    return 0;
}

static uint32_t perform(const struct command *command)
{
    uint8_t *at = medium + command->lba * BLOCK;
    size_t length = (size_t)command->blocks * BLOCK;

    if (command->lba + command->blocks > FAKE_BLOCKS) {
        return 0x080;
    }
    fake.performed++;
    switch (command->raw.opc) {
    case SPDK_NVME_OPC_READ:
        memcpy(command->buffer, at, length);
        return 0;
    case SPDK_NVME_OPC_WRITE:
        fake.last_flags = command->raw.cdw12;
        memcpy(at, command->buffer, length);
        return 0;
    case SPDK_NVME_OPC_COMPARE:
        return memcmp(at, command->buffer, length) == 0 ? 0 : 0x285;
    case SPDK_NVME_OPC_WRITE_ZEROES:
        if (fake.only_writes) {
            return 0x001;
        }
        fake.last_flags = command->raw.cdw12;
        memset(at, 0, length);
        return 0;
    default:
        return 0;
    }
}

static uint32_t perform_admin(const struct command *command)
{
    switch (command->raw.opc) {
    case 0x02: /* Get Log Page: as many bytes of the page's number as were asked for */
        memset(command->buffer, (int)(command->raw.cdw10 & 0xFF), command->length);
        return 0;
    case FORMAT_NVM:
        fake.block_bits = (command->raw.cdw10 & 0x0F) == 1 ? 12 : 9;
        return 0;
    case 0x11: /* Firmware Image Download */
        if (command->raw.cdw11 * 4 != fake.firmware_bytes || (command->raw.cdw10 + 1) * 4 != command->length) {
            return 0x114;
        }
        fake.firmware_bytes += command->length;
        return 0;
    case 0x10: /* Firmware Commit */
        fake.firmware_slot = command->raw.cdw10;
        return 0;
    default:
        return 0x001;
    }
}

static void end(struct spdk_nvme_qpair *queue, struct command *command, uint32_t status)
{
    struct spdk_nvme_cpl completion = {.status = {.sct = (status >> 8) & 7, .sc = status & 0xFF}};

    STAILQ_REMOVE(&queue->commands, command, command, link);
    queue->count--;
    command->callback(command->argument, &completion);
    free(command);
}

static int32_t process(struct spdk_nvme_qpair *queue, uint32_t (*how)(const struct command *))
{
    struct command *command, *next;
    uint32_t count = queue->count; /* what callbacks submit is for the next time */
    int32_t ended = 0;

    if (fake.dead) {
        return -ENXIO;
    }
    for (command = STAILQ_FIRST(&queue->commands); command != NULL && count-- > 0; command = next) {
        uint32_t status;

        next = STAILQ_NEXT(command, link);
        if (!command->aborted && fake.hold) {
            continue;
        }
        status = command->aborted ? 0x007 : atomic_exchange(&fake.next_status, 0);
        end(queue, command, status != 0 ? status : how(command));
        ended++;
    }
    return ended;
}

static void end_all(struct spdk_nvme_qpair *queue)
{
    struct command *command;

    while ((command = STAILQ_FIRST(&queue->commands)) != NULL) {
        end(queue, command, 0x008);
    }
}

/* Controllers. */

int spdk_nvme_transport_id_parse(struct spdk_nvme_transport_id *transport, const char *text)
{
    if (strncmp(text, "trtype:", 7) != 0) {
        return -EINVAL;
    }
    transport->trtype = strncmp(text + 7, "PCIe", 4) == 0 ? SPDK_NVME_TRANSPORT_PCIE : SPDK_NVME_TRANSPORT_TCP;
    return 0;
}

void spdk_nvme_trid_populate_transport(struct spdk_nvme_transport_id *transport, enum spdk_nvme_transport_type type)
{
    transport->trtype = type;
}

static struct spdk_nvme_ctrlr *attached;

int spdk_nvme_probe(
    const struct spdk_nvme_transport_id *transport, void *context, spdk_nvme_probe_cb probe, spdk_nvme_attach_cb attach,
    spdk_nvme_remove_cb remove)
{
    struct spdk_nvme_ctrlr_opts options = {0};

    (void)attach;
    (void)remove;
    if (fake.pulled && attached != NULL && attached->removed != NULL) {
        attached->removed(attached->removed_context, attached);
        return 0;
    }
    fake.scans++;
    if (probe(context, transport, &options)) {
        abort(); /* the shim attaches nothing that it was not told to */
    }
    return 0;
}

void spdk_nvme_ctrlr_get_default_ctrlr_opts(struct spdk_nvme_ctrlr_opts *options, size_t size)
{
    memset(options, 0, size);
}

static void identify(struct spdk_nvme_ctrlr *controller)
{
    struct spdk_nvme_ns_data *space = &controller->space.data;

    memset(&controller->data, ' ', offsetof(struct spdk_nvme_ctrlr_data, before_oncs));
    memcpy(controller->data.sn, fake.other ? "OTHER" : "FAKE0", 5);
    memcpy(controller->data.mn, "Fake drive", 10);
    memcpy(controller->data.fr, "1.0", 3);
    space->nsze = fake.block_bits == 12 ? FAKE_BLOCKS : FAKE_BLOCKS * 8;
    space->nlbaf = 1;
    space->flbas = fake.block_bits == 12 ? 1 : 0;
    controller->data.oncs = fake.only_writes ? 0 : 1u << 3;
    space->dlfeat = fake.forgets ? 0 : 9;
    space->lbaf[0] = 9u << 16 | 1u << 24;
    space->lbaf[1] = 12u << 16;
}

struct spdk_nvme_ctrlr *spdk_nvme_connect(
    const struct spdk_nvme_transport_id *transport, const struct spdk_nvme_ctrlr_opts *options, size_t size)
{
    struct spdk_nvme_ctrlr *controller;

    if (fake.dead || size != sizeof(*options)) {
        return NULL;
    }
    if (attached != NULL) {
        attached->references++;
        return attached;
    }
    controller = calloc(1, sizeof(*controller));
    controller->references = 1;
    STAILQ_INIT(&controller->admin.commands);
    controller->connected = true;
    controller->transport = *transport;
    identify(controller);
    fake.connections++;
    fake.controllers++;
    attached = controller;
    return controller;
}

int spdk_nvme_detach(struct spdk_nvme_ctrlr *controller)
{
    if (--controller->references > 0) {
        return 0;
    }
    end_all(&controller->admin);
    fake.controllers--;
    attached = NULL;
    free(controller);
    return 0;
}

const struct spdk_nvme_ctrlr_data *spdk_nvme_ctrlr_get_data(struct spdk_nvme_ctrlr *controller)
{
    return &controller->data;
}

uint32_t spdk_nvme_ctrlr_get_first_active_ns(struct spdk_nvme_ctrlr *controller)
{
    (void)controller;
    return fake.inactive ? 0 : 1;
}

struct spdk_nvme_ns *spdk_nvme_ctrlr_get_ns(struct spdk_nvme_ctrlr *controller, uint32_t nsid)
{
    return nsid == 1 ? &controller->space : NULL;
}

struct spdk_pci_device *spdk_nvme_ctrlr_get_pci_device(struct spdk_nvme_ctrlr *controller)
{
    return controller->transport.trtype == SPDK_NVME_TRANSPORT_PCIE ? &controller->slot : NULL;
}

bool spdk_pci_device_is_removed(struct spdk_pci_device *device)
{
    (void)device;
    return fake.pulled;
}

void spdk_nvme_ctrlr_set_remove_cb(struct spdk_nvme_ctrlr *controller, spdk_nvme_remove_cb callback, void *context)
{
    controller->removed = callback;
    controller->removed_context = context;
}

int spdk_nvme_ctrlr_disconnect(struct spdk_nvme_ctrlr *controller)
{
    if (fake.pulled) {
        return -ENXIO;
    }
    controller->connected = false;
    return 0;
}

void spdk_nvme_ctrlr_reconnect_async(struct spdk_nvme_ctrlr *controller)
{
    if (!STAILQ_EMPTY(&controller->admin.commands)) {
        abort();
    }
    fake.attempts++;
}

int spdk_nvme_ctrlr_reconnect_poll_async(struct spdk_nvme_ctrlr *controller)
{
    if (fake.slow) {
        return -EAGAIN;
    }
    if (fake.dead) {
        return -1;
    }
    controller->connected = true;
    identify(controller);
    fake.connections++;
    return 0;
}

int32_t spdk_nvme_ctrlr_process_admin_completions(struct spdk_nvme_ctrlr *controller)
{
    if (!controller->connected) {
        end_all(&controller->admin);
        return -ENXIO;
    }
    return process(&controller->admin, perform_admin);
}

int spdk_nvme_ctrlr_cmd_admin_raw(
    struct spdk_nvme_ctrlr *controller, struct spdk_nvme_cmd *command, void *buffer, uint32_t length,
    spdk_nvme_cmd_cb callback, void *argument)
{
    struct command made = {
        .raw = *command, .buffer = buffer, .length = length, .callback = callback, .argument = argument};

    return submit(&controller->admin, &made);
}

int spdk_nvme_ctrlr_cmd_abort_ext(
    struct spdk_nvme_ctrlr *controller, struct spdk_nvme_qpair *queue, void *of, spdk_nvme_cmd_cb callback,
    void *argument)
{
    struct spdk_nvme_cpl completion = {0};
    struct command *command;

    fake.aborts++;
    STAILQ_FOREACH(command, queue != NULL ? &queue->commands : &controller->admin.commands, link) {
        if (command->argument == of && !fake.silent) {
            command->aborted = true;
        }
    }
    callback(argument, &completion);
    return 0;
}

void spdk_nvme_ctrlr_get_default_io_qpair_opts(
    struct spdk_nvme_ctrlr *controller, struct spdk_nvme_io_qpair_opts *options, size_t size)
{
    (void)controller;
    memset(options, 0, size);
}

struct spdk_nvme_qpair *spdk_nvme_ctrlr_alloc_io_qpair(
    struct spdk_nvme_ctrlr *controller, const struct spdk_nvme_io_qpair_opts *options, size_t size)
{
    struct spdk_nvme_qpair *queue;

    (void)controller;
    (void)options;
    (void)size;
    if (fake.dead) {
        return NULL;
    }
    queue = calloc(1, sizeof(*queue));
    STAILQ_INIT(&queue->commands);
    fake.queues++;
    return queue;
}

int spdk_nvme_ctrlr_free_io_qpair(struct spdk_nvme_qpair *queue)
{
    end_all(queue);
    free(queue);
    fake.queues--;
    return 0;
}

int32_t spdk_nvme_qpair_process_completions(struct spdk_nvme_qpair *queue, uint32_t most)
{
    (void)most;
    return process(queue, perform);
}

/* Namespaces. */

bool spdk_nvme_ns_is_active(struct spdk_nvme_ns *space)
{
    (void)space;
    return !fake.inactive;
}

const struct spdk_nvme_ns_data *spdk_nvme_ns_get_data(struct spdk_nvme_ns *space)
{
    return &space->data;
}

uint64_t spdk_nvme_ns_get_num_sectors(struct spdk_nvme_ns *space)
{
    return space->data.nsze;
}

static int submit_io(
    struct spdk_nvme_qpair *queue, uint16_t opcode, void *buffer, uint64_t lba, uint32_t blocks,
    spdk_nvme_cmd_cb callback, void *argument, uint32_t flags)
{
    struct command made = {
        .raw = {.opc = opcode, .cdw12 = flags}, .buffer = buffer, .lba = lba, .blocks = blocks,
        .callback = callback, .argument = argument};

    return submit(queue, &made);
}

int spdk_nvme_ns_cmd_read(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, void *buffer, uint64_t lba, uint32_t blocks,
    spdk_nvme_cmd_cb callback, void *argument, uint32_t flags)
{
    (void)space;
    return submit_io(queue, SPDK_NVME_OPC_READ, buffer, lba, blocks, callback, argument, flags);
}

int spdk_nvme_ns_cmd_write(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, void *buffer, uint64_t lba, uint32_t blocks,
    spdk_nvme_cmd_cb callback, void *argument, uint32_t flags)
{
    (void)space;
    return submit_io(queue, SPDK_NVME_OPC_WRITE, buffer, lba, blocks, callback, argument, flags);
}

int spdk_nvme_ns_cmd_compare(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, void *buffer, uint64_t lba, uint32_t blocks,
    spdk_nvme_cmd_cb callback, void *argument, uint32_t flags)
{
    (void)space;
    return submit_io(queue, SPDK_NVME_OPC_COMPARE, buffer, lba, blocks, callback, argument, flags);
}

int spdk_nvme_ns_cmd_flush(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, spdk_nvme_cmd_cb callback, void *argument)
{
    (void)space;
    return submit_io(queue, SPDK_NVME_OPC_FLUSH, NULL, 0, 0, callback, argument, 0);
}

int spdk_nvme_ns_cmd_write_zeroes(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, uint64_t lba, uint32_t blocks, spdk_nvme_cmd_cb callback,
    void *argument, uint32_t flags)
{
    (void)space;
    return submit_io(queue, SPDK_NVME_OPC_WRITE_ZEROES, NULL, lba, blocks, callback, argument, flags);
}
