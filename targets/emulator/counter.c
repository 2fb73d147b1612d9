/* Counts the A64 instructions that an emulated program executes between two marks, for qemu-user with plugins.

   gcc -O2 -Wall -Wextra -Werror -fPIC -shared -o counter.so counter.c
   qemu-aarch64 -plugin counter.so,out=FILE PROGRAM           (a comma in FILE is written twice)

   close(0x7e570001) in the program begins a region, close(0x7e570002) ends it; both fail with EBADF. A region
   holds everything after the first call's svc up to and including the second's. At its end one line of JSON
   goes to FILE: {"instructions": N, "loads": N, "stores": N, "fma": N, "dot": N, "widening": N}.

   The counters are plain memory that every thread adds to: exact for a program of one thread only. */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "classes.h"

/* QEMU's plugin API 1, as far as it is used here, so that no header of QEMU's is needed. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus, max_vcpus;
    } system;
} qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*tb_trans_callback)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*syscall_callback)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                                 uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_trans_callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { CLOSE = 57, BEGIN = 0x7e570001, END = 0x7e570002 };

static const struct {
    const char *name;
    unsigned bit; /* in classes.h; 0: every instruction */
} kinds[] = {
    {"instructions", 0}, {"loads", LOAD}, {"stores", STORE}, {"fma", FMA}, {"dot", DOT}, {"widening", WIDENING},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static uint64_t executed[KINDS], at_begin[KINDS];
static FILE *out;

/* One addition a block and kind, where it is not zero: a block is entered at its top and executes whole. Only a
   fault, or an atomic operation that QEMU must repeat alone, leaves it in the middle, and is then counted too much. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    size_t length = qemu_plugin_tb_n_insns(block);
    uint64_t counts[KINDS] = {length};
    for (size_t i = 0; i < length; i++) {
        uint8_t bytes[4]; /* little-endian on every board, whatever the host is */
        memcpy(bytes, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof bytes);
        uint32_t word = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
        unsigned found = classes_of(word);
        for (size_t k = 1; k < KINDS; k++)
            counts[k] += (found & kinds[k].bit) != 0;
    }
    for (size_t k = 0; k < KINDS; k++)
        if (counts[k] != 0)
            qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &executed[k], counts[k]);
}

static void write_region(void)
{
    for (size_t k = 0; k < KINDS; k++)
        fprintf(out, "%s\"%s\": %" PRIu64, k == 0 ? "{" : ", ", kinds[k].name, executed[k] - at_begin[k]);
    fputs("}\n", out);
    if (fflush(out) != 0)
        fprintf(stderr, "counter: cannot write the counts: %s\n", strerror(errno));
}

/* Called before the call is made, when the block that ends with its svc has been counted. */
static void called(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != CLOSE)
        return;
    if ((uint32_t)a1 == BEGIN)
        memcpy(at_begin, executed, sizeof executed);
    else if ((uint32_t)a1 == END)
        write_region();
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    if (strcmp(info->target_name, "aarch64") != 0 || info->system_emulation) {
        fprintf(stderr, "counter: counts what qemu-aarch64 runs, not %s\n", info->target_name);
        return 1;
    }
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || argv[0][4] == '\0') {
        fprintf(stderr, "counter: takes out=FILE and nothing else\n");
        return 1;
    }
    out = fopen(argv[0] + 4, "ae"); /* e: programs that the emulated one starts do not inherit it */
    if (out == NULL) {
        fprintf(stderr, "counter: cannot write %s: %s\n", argv[0] + 4, strerror(errno));
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
