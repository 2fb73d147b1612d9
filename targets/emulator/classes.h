/* What an A64 word does, by its encoding (Arm Architecture Reference Manual DDI 0487, chapter C4.1).

   Pure: words in, classes out. General registers, scalar floating point and Advanced SIMD up to Armv8.7 are
   told apart; SVE, SME, bfloat16, 64-byte and memory-copy instructions are in no class, because no board has them.
   A word that is no instruction may get any class: it faults, and nobody counts it. */
#ifndef HIGHWALL_CLASSES_H
#define HIGHWALL_CLASSES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A word may be a load and a store at once; at most one of the arithmetic three; and never of both kinds. */
enum { LOAD = 1, STORE = 2, FMA = 4, DOT = 8, WIDENING = 16 };

/* Bits of `word` from `low` up, `width` of them. */
static inline uint32_t field(uint32_t word, int low, int width)
{
    return word >> low & ((1u << width) - 1);
}

/* The encodings of one instruction: the fixed bits, and what they are. */
struct pattern {
    uint32_t mask, value;
};

static inline bool any_of(const struct pattern *patterns, size_t count, uint32_t word)
{
    for (size_t i = 0; i < count; i++)
        if ((word & patterns[i].mask) == patterns[i].value)
            return true;
    return false;
}

#define ANY_OF(patterns, word) any_of(patterns, sizeof(patterns) / sizeof *(patterns), word)

/* Multiply and add, rounded once: scalar, vector and by element, half precision too; not the complex FCMLA. */
static inline bool is_fma(uint32_t word)
{
    static const struct pattern patterns[] = {
        {0xff800000, 0x1f000000}, /* FMADD, FMSUB, FNMADD, FNMSUB: single and double */
        {0xffc00000, 0x1fc00000}, /* the same, half */
        {0xbf20fc00, 0x0e20cc00}, /* FMLA, FMLS: vector, single and double */
        {0xbf60fc00, 0x0e400c00}, /* vector, half */
        {0xbf80b400, 0x0f801000}, /* vector by element, single and double */
        {0xbfc0b400, 0x0f001000}, /* vector by element, half */
        {0xff80b400, 0x5f801000}, /* scalar by element, single and double */
        {0xffc0b400, 0x5f001000}, /* scalar by element, half */
        {0xbf20fc00, 0x0e20ec00}, /* FMLAL, FMLSL: vector */
        {0xbf20fc00, 0x2e20cc00}, /* FMLAL2, FMLSL2: vector */
        {0xbfc0b400, 0x0f800000}, /* FMLAL, FMLSL: by element */
        {0xbfc0b400, 0x2f808000}, /* FMLAL2, FMLSL2: by element */
    };
    return ANY_OF(patterns, word);
}

/* Sums of four products of bytes, and their 2x8 by 8x2 matrix forms. */
static inline bool is_dot(uint32_t word)
{
    static const struct pattern patterns[] = {
        {0x9fe0fc00, 0x0e809400}, /* SDOT, UDOT: vector */
        {0xbfe0fc00, 0x0e809c00}, /* USDOT: vector */
        {0xdfe0fc00, 0x4e80a400}, /* SMMLA, UMMLA */
        {0xffe0fc00, 0x4e80ac00}, /* USMMLA */
        {0x9fc0f400, 0x0f80e000}, /* SDOT, UDOT: by element */
        {0xbf40f400, 0x0f00f000}, /* SUDOT, USDOT: by element */
    };
    return ANY_OF(patterns, word);
}

/* Vector products twice as wide as their factors: S/UMULL, S/UMLAL, S/UMLSL, SQDMULL, SQDMLAL, SQDMLSL and their
   `2` forms; not the polynomial PMULL, nor SMULL and the like on general registers. */
static inline bool is_widening(uint32_t word)
{
    uint32_t size = field(word, 22, 2);
    bool is_unsigned = field(word, 29, 1), scalar = field(word, 28, 1);
    uint32_t opcode = field(word, 12, 4);
    if (scalar && !field(word, 30, 1))
        return false;
    if ((word & 0x8f200c00) == 0x0e200000) { /* three registers of different widths */
        if (opcode == 9 || opcode == 11 || opcode == 13)
            return (size == 1 || size == 2) && !is_unsigned;
        return (opcode == 8 || opcode == 10 || opcode == 12) && size != 3 && !scalar;
    }
    if ((word & 0x8f000400) == 0x0f000000 && (size == 1 || size == 2)) { /* by element */
        if (opcode == 3 || opcode == 7 || opcode == 11)
            return !is_unsigned;
        return (opcode == 2 || opcode == 6 || opcode == 10) && !scalar;
    }
    return false;
}

static inline unsigned load_if(bool load)
{
    return load ? LOAD : STORE;
}

/* Exclusive, ordered, compare-and-swap: size 001000 o2 L o1 Rs o0 Rt2 Rn Rt. */
static inline unsigned exclusive_classes(uint32_t word)
{
    bool ordered = field(word, 23, 1), second = field(word, 21, 1);
    if (second && (ordered || field(word, 30, 2) < 2)) /* CAS; CASP where a pair of bytes would stand */
        return LOAD | STORE;
    return load_if(field(word, 22, 1));
}

/* size 111000 A R 1 Rs o3 opc 00: swap, and load with add, clear, set, ... which STADD and its like are too. */
static inline unsigned atomic_classes(uint32_t word)
{
    uint32_t operation = field(word, 12, 4);
    if (operation == 12) /* LDAPR */
        return LOAD;
    return operation <= 8 ? LOAD | STORE : 0;
}

/* One register, or the word that asks the cache for one: size 111 V 0x opc ... */
static inline unsigned register_classes(uint32_t word)
{
    bool vector = field(word, 26, 1), scaled = field(word, 24, 1), by_register = field(word, 21, 1);
    uint32_t size = field(word, 30, 2), opc = field(word, 22, 2), kind = field(word, 10, 2);
    if (!scaled && by_register && kind != 2) {
        if (vector)
            return 0;
        if (kind == 0)
            return atomic_classes(word);
        return size == 3 ? LOAD : 0; /* LDRAA, LDRAB */
    }
    if (vector) /* opc 2 and 3 are 128 bits wide */
        return load_if(opc & 1);
    if (size == 3 && opc == 2) /* PRFM, PRFUM */
        return 0;
    return load_if(opc != 0);
}

/* LD1..LD4, ST1..ST4: several structures, one, or one in every lane. */
static inline unsigned structure_classes(uint32_t word)
{
    return load_if(field(word, 22, 1));
}

/* Loads and stores. What swaps is both, what prefetches is neither. */
static inline unsigned memory_classes(uint32_t word)
{
    if ((word & 0x0a000000) != 0x08000000)
        return 0;
    if ((word & 0xbe000000) == 0x0c000000)
        return structure_classes(word);
    if ((word & 0x3f000000) == 0x08000000)
        return exclusive_classes(word);
    if ((word & 0x3b000000) == 0x18000000) /* literal; the fourth is PRFM */
        return field(word, 30, 2) == 3 ? 0 : LOAD;
    if ((word & 0x3a000000) == 0x28000000) /* pairs */
        return load_if(field(word, 22, 1));
    if ((word & 0x3f200c00) == 0x19000000) /* LDAPUR, STLUR */
        return load_if(field(word, 22, 2) != 0);
    if ((word & 0xff200000) == 0xd9200000) /* memory tags: LDG and LDGM, the others store */
        return load_if(field(word, 10, 2) == 0 && field(word, 22, 1));
    if ((word & 0x3a000000) == 0x38000000)
        return register_classes(word);
    return 0;
}

/* Every class of `word`, or 0. */
static inline unsigned classes_of(uint32_t word)
{
    unsigned found = memory_classes(word);
    if (is_fma(word))
        found |= FMA;
    if (is_dot(word))
        found |= DOT;
    if (is_widening(word))
        found |= WIDENING;
    return found;
}

#endif
