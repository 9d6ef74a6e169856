/* The part of SPDK's NVMe driver that the shim uses: declarations only, as few as will do. */

#ifndef SPDK_NVME_H
#define SPDK_NVME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPDK_NVMF_NQN_MAX_LEN 223

enum spdk_nvme_nvm_opcode {
    SPDK_NVME_OPC_FLUSH = 0x00,
    SPDK_NVME_OPC_WRITE = 0x01,
    SPDK_NVME_OPC_READ = 0x02,
    SPDK_NVME_OPC_COMPARE = 0x05,
    SPDK_NVME_OPC_WRITE_ZEROES = 0x08,
};

enum spdk_nvme_transport_type { SPDK_NVME_TRANSPORT_PCIE = 256, SPDK_NVME_TRANSPORT_TCP = 3 };

struct spdk_nvme_transport_id {
    enum spdk_nvme_transport_type trtype;
};

struct spdk_nvme_status {
    uint16_t sc : 8;
    uint16_t sct : 3;
};

struct spdk_nvme_cpl {
    struct spdk_nvme_status status;
};

struct spdk_nvme_cmd {
    uint16_t opc;
    uint32_t nsid;
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};

struct spdk_nvme_ctrlr_data {
    uint8_t ids[4];
    int8_t sn[20];
    int8_t mn[40];
    uint8_t fr[8];
    uint8_t before_oncs[520 - 72];
    uint16_t oncs;
    uint8_t rest[4096 - 522];
};

struct spdk_nvme_ns_data {
    uint64_t nsze;
    uint8_t before_formats[17];
    uint8_t nlbaf;
    uint8_t flbas;
    uint8_t before_dlfeat[6];
    uint8_t dlfeat;
    uint8_t before_lbaf[94];
    uint32_t lbaf[16];
    uint8_t rest[4096 - 192];
};

struct spdk_nvme_ctrlr_opts {
    uint32_t num_io_queues;
    uint32_t keep_alive_timeout_ms;
    uint32_t io_queue_size;
    uint32_t io_queue_requests;
    uint32_t admin_timeout_ms;
    uint64_t fabrics_connect_timeout_us;
    bool disable_error_logging;
    char hostnqn[SPDK_NVMF_NQN_MAX_LEN + 1];
};

struct spdk_nvme_io_qpair_opts {
    uint32_t io_queue_size;
};

struct spdk_nvme_ctrlr;
struct spdk_nvme_ns;
struct spdk_nvme_qpair;

typedef void (*spdk_nvme_cmd_cb)(void *argument, const struct spdk_nvme_cpl *completion);
typedef bool (*spdk_nvme_probe_cb)(
    void *context, const struct spdk_nvme_transport_id *transport, struct spdk_nvme_ctrlr_opts *options);
typedef void (*spdk_nvme_attach_cb)(
    void *context, const struct spdk_nvme_transport_id *transport, struct spdk_nvme_ctrlr *controller,
    const struct spdk_nvme_ctrlr_opts *options);
typedef void (*spdk_nvme_remove_cb)(void *context, struct spdk_nvme_ctrlr *controller);

int spdk_nvme_transport_id_parse(struct spdk_nvme_transport_id *transport, const char *text);
void spdk_nvme_trid_populate_transport(struct spdk_nvme_transport_id *transport, enum spdk_nvme_transport_type type);
int spdk_nvme_probe(
    const struct spdk_nvme_transport_id *transport, void *context, spdk_nvme_probe_cb probe, spdk_nvme_attach_cb attach,
    spdk_nvme_remove_cb remove);

void spdk_nvme_ctrlr_get_default_ctrlr_opts(struct spdk_nvme_ctrlr_opts *options, size_t size);
struct spdk_nvme_ctrlr *spdk_nvme_connect(
    const struct spdk_nvme_transport_id *transport, const struct spdk_nvme_ctrlr_opts *options, size_t size);
int spdk_nvme_detach(struct spdk_nvme_ctrlr *controller);
const struct spdk_nvme_ctrlr_data *spdk_nvme_ctrlr_get_data(struct spdk_nvme_ctrlr *controller);
uint32_t spdk_nvme_ctrlr_get_first_active_ns(struct spdk_nvme_ctrlr *controller);
struct spdk_nvme_ns *spdk_nvme_ctrlr_get_ns(struct spdk_nvme_ctrlr *controller, uint32_t nsid);
struct spdk_pci_device *spdk_nvme_ctrlr_get_pci_device(struct spdk_nvme_ctrlr *controller);
void spdk_nvme_ctrlr_set_remove_cb(struct spdk_nvme_ctrlr *controller, spdk_nvme_remove_cb callback, void *context);
int spdk_nvme_ctrlr_disconnect(struct spdk_nvme_ctrlr *controller);
void spdk_nvme_ctrlr_reconnect_async(struct spdk_nvme_ctrlr *controller);
int spdk_nvme_ctrlr_reconnect_poll_async(struct spdk_nvme_ctrlr *controller);
int32_t spdk_nvme_ctrlr_process_admin_completions(struct spdk_nvme_ctrlr *controller);
int spdk_nvme_ctrlr_cmd_admin_raw(
    struct spdk_nvme_ctrlr *controller, struct spdk_nvme_cmd *command, void *buffer, uint32_t length,
    spdk_nvme_cmd_cb callback, void *argument);
int spdk_nvme_ctrlr_cmd_abort_ext(
    struct spdk_nvme_ctrlr *controller, struct spdk_nvme_qpair *queue, void *of, spdk_nvme_cmd_cb callback,
    void *argument);

void spdk_nvme_ctrlr_get_default_io_qpair_opts(
    struct spdk_nvme_ctrlr *controller, struct spdk_nvme_io_qpair_opts *options, size_t size);
struct spdk_nvme_qpair *spdk_nvme_ctrlr_alloc_io_qpair(
    struct spdk_nvme_ctrlr *controller, const struct spdk_nvme_io_qpair_opts *options, size_t size);
int spdk_nvme_ctrlr_free_io_qpair(struct spdk_nvme_qpair *queue);
int32_t spdk_nvme_qpair_process_completions(struct spdk_nvme_qpair *queue, uint32_t most);

bool spdk_nvme_ns_is_active(struct spdk_nvme_ns *space);
const struct spdk_nvme_ns_data *spdk_nvme_ns_get_data(struct spdk_nvme_ns *space);
uint64_t spdk_nvme_ns_get_num_sectors(struct spdk_nvme_ns *space);
int spdk_nvme_ns_cmd_read(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, void *buffer, uint64_t lba, uint32_t blocks,
    spdk_nvme_cmd_cb callback, void *argument, uint32_t flags);
int spdk_nvme_ns_cmd_write(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, void *buffer, uint64_t lba, uint32_t blocks,
    spdk_nvme_cmd_cb callback, void *argument, uint32_t flags);
int spdk_nvme_ns_cmd_compare(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, void *buffer, uint64_t lba, uint32_t blocks,
    spdk_nvme_cmd_cb callback, void *argument, uint32_t flags);
int spdk_nvme_ns_cmd_flush(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, spdk_nvme_cmd_cb callback, void *argument);
int spdk_nvme_ns_cmd_write_zeroes(
    struct spdk_nvme_ns *space, struct spdk_nvme_qpair *queue, uint64_t lba, uint32_t blocks, spdk_nvme_cmd_cb callback,
    void *argument, uint32_t flags);

#endif
