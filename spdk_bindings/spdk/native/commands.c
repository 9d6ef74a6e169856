/* Commands on their way: from the ring into SPDK, and from its completions into the ring back. */

#include "drive.h"

static uint32_t status_of_cpl(const struct spdk_nvme_cpl *completion)
{
    return (uint32_t)completion->status.sct << 8 | completion->status.sc;
}

static void ended(void *argument, const struct spdk_nvme_cpl *completion)
{
    struct request *request = argument;
    struct drive *drive = request->drive;
    struct request_list *list = request->command.kind == DRIVE_ADMIN ? &drive->admin : &drive->io;

    TAILQ_REMOVE(list, request, link);
    drive->outstanding--;
    request_complete(request, status_of_cpl(completion));
}

static void abort_ended(void *argument, const struct spdk_nvme_cpl *completion)
{
    /* Whether it helped shows in the command that it was for. */
    (void)argument;
    (void)completion;
}

void request_complete(struct request *request, uint32_t status)
{
    struct drive *drive = request->drive;

    request->status = status;
    if (drive->hold) {
        TAILQ_INSERT_TAIL(&drive->held, request, link);
        return;
    }
    if (status != STATUS_SUCCESS) {
        bump(&drive->view.failures);
    }
    /* There is room: a tag is in one place only, and there are as many entries as tags. */
    drive->completions[ring_next(&drive->completion_ring)] =
        (struct drive_completion){.tag = (uint32_t)request->command.tag, .status = status};
    ring_produce(&drive->completion_ring, 1);
}

/* Let those go that a reset has ended. */
void commands_release(struct drive *drive)
{
    struct request *request;

    drive->hold = false;
    while ((request = TAILQ_FIRST(&drive->held)) != NULL) {
        TAILQ_REMOVE(&drive->held, request, link);
        request_complete(request, request->status);
    }
}

/* End what SPDK has not been given. */
void commands_refuse(struct drive *drive, uint32_t status)
{
    struct request *request;

    while ((request = TAILQ_FIRST(&drive->pending)) != NULL) {
        TAILQ_REMOVE(&drive->pending, request, link);
        request_complete(request, status);
    }
}

bool commands_take(struct drive *drive)
{
    uint32_t count = ring_filled(&drive->command_ring);

    for (uint32_t taken = 0; taken < count; taken++) {
        const struct drive_command *command = &drive->commands[ring_first(&drive->command_ring)];
        struct request *request = &drive->requests[command->tag];

        request->command = *command;
        request->abort_sent = false;
        ring_consume(&drive->command_ring, 1);
        if (command->kind == DRIVE_RESET) {
            commands_refuse(drive, STATUS_ABORT_REQUESTED);
            controller_reset(drive, request, now_ns());
        } else {
            TAILQ_INSERT_TAIL(&drive->pending, request, link);
        }
    }
    return count != 0;
}

static int submit_io(struct drive *drive, struct request *request)
{
    const struct drive_command *command = &request->command;
    struct spdk_nvme_ns *namespace = drive->namespace;
    struct spdk_nvme_qpair *queue = drive->queue;
    void *buffer = (void *)(uintptr_t)command->buffer;
    uint32_t flags = (uint32_t)command->flags << 16;

    switch (command->opcode) {
    case SPDK_NVME_OPC_READ:
        return spdk_nvme_ns_cmd_read(namespace, queue, buffer, command->lba, command->blocks, ended, request, flags);
    case SPDK_NVME_OPC_WRITE:
        return spdk_nvme_ns_cmd_write(namespace, queue, buffer, command->lba, command->blocks, ended, request, flags);
    case SPDK_NVME_OPC_COMPARE:
        return spdk_nvme_ns_cmd_compare(namespace, queue, buffer, command->lba, command->blocks, ended, request, flags);
    case SPDK_NVME_OPC_FLUSH:
        return spdk_nvme_ns_cmd_flush(namespace, queue, ended, request);
    case SPDK_NVME_OPC_WRITE_ZEROES:
        return spdk_nvme_ns_cmd_write_zeroes(namespace, queue, command->lba, command->blocks, ended, request, flags);
    default:
        return -EINVAL;
    }
}

static int submit_admin(struct drive *drive, struct request *request)
{
    const struct drive_command *command = &request->command;
    struct spdk_nvme_cmd raw = {0};

    raw.opc = command->opcode;
    raw.nsid = command->nsid;
    raw.cdw10 = command->dwords[0];
    raw.cdw11 = command->dwords[1];
    raw.cdw12 = command->dwords[2];
    raw.cdw13 = command->dwords[3];
    raw.cdw14 = command->dwords[4];
    raw.cdw15 = command->dwords[5];
    return spdk_nvme_ctrlr_cmd_admin_raw(
        drive->controller, &raw, (void *)(uintptr_t)command->buffer, command->length, ended, request);
}

static void count(struct drive *drive, const struct drive_command *command)
{
    if (command->kind == DRIVE_IO && command->opcode == SPDK_NVME_OPC_READ) {
        bump(&drive->view.reads);
    } else if (command->kind == DRIVE_IO && command->opcode == SPDK_NVME_OPC_WRITE) {
        bump(&drive->view.writes);
    } else {
        bump(&drive->view.other_commands);
    }
}

/* Give pending commands to SPDK until it takes no more. Whether any was. */
bool commands_submit(struct drive *drive, uint64_t now)
{
    struct request *request;
    bool any = false;

    while ((request = TAILQ_FIRST(&drive->pending)) != NULL) {
        bool is_admin = request->command.kind == DRIVE_ADMIN;
        struct request_list *list = is_admin ? &drive->admin : &drive->io;
        int result;

        TAILQ_REMOVE(&drive->pending, request, link);
        if (!is_admin && !drive->active) {
            request_complete(request, STATUS_INVALID_NAMESPACE);
            continue;
        }
        /* First into the list: SPDK may end a command inside the call that submits it. */
        request->submitted_ns = now;
        TAILQ_INSERT_TAIL(list, request, link);
        drive->outstanding++;
        result = is_admin ? submit_admin(drive, request) : submit_io(drive, request);
        if (result == 0) {
            count(drive, &request->command);
            any = true;
            continue;
        }
        TAILQ_REMOVE(list, request, link);
        drive->outstanding--;
        if (result == -ENXIO || (result == -ENOMEM && is_outstanding(drive))) {
            TAILQ_INSERT_HEAD(&drive->pending, request, link);
            if (result == -ENOMEM) {
                bump(&drive->view.queue_full);
            } else {
                drive->lost = true;
            }
            return any;
        }
        request_complete(request, result == -EINVAL ? STATUS_INVALID_FIELD : STATUS_INTERNAL_ERROR);
    }
    return any;
}

/* Ask the controller to abort a command, once. */
void commands_abort(struct drive *drive, struct request *request)
{
    struct spdk_nvme_qpair *queue = request->command.kind == DRIVE_ADMIN ? NULL : drive->queue;

    if (!request->abort_sent) {
        request->abort_sent = true;
        spdk_nvme_ctrlr_cmd_abort_ext(drive->controller, queue, request, abort_ended, NULL);
    }
}
